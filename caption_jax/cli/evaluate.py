"""`--mode=evaluate`: scores a run's best weights on a split."""

from __future__ import annotations

import jax
from absl import flags

from caption_jax.cli.command_flags import kind_of_context, spec_of
from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.final_evaluation import evaluate_split
from caption_jax.evaluation.report.terminal import print_evaluation
from caption_jax.files import absolute
from caption_jax.runs.experiment import open_experiment


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the results into the workdir, prints them, returns the exit status."""
    experiment = open_experiment(absolute(options.workdir), spec_of(options))
    print_assessment(evaluate_split(experiment, options.split, options.images, kind_of_context(options)))
    return 0


def print_assessment(assessment: Assessment | None) -> None:
    """Prints an evaluation, if there was one; of several processes the first does."""
    if assessment is not None and jax.process_index() == 0:
        print_evaluation(assessment)
