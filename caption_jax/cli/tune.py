"""`--mode=tune`: tunes the settings of beam search on a split."""

from __future__ import annotations

import jax
from absl import flags

from caption_jax.cli.command_flags import get_context_kind, spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.evaluation.tuning import print_tuning, tune_split
from caption_jax.runs.experiment import open_experiment
from input_pipeline.files import absolute_path


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints the scores of each setting; returns the exit status."""
    with display_from_flags(options) as display:
        experiment = open_experiment(absolute_path(options.workdir), spec_from_flags(options), display=display)
        tuning = tune_split(experiment, options.split, get_context_kind(options))
    if jax.process_index() == 0:
        print_tuning(tuning)
    return 0
