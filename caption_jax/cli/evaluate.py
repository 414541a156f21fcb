"""`--mode=evaluate`: evaluates the weights of a run on a split."""

from __future__ import annotations

import jax
from absl import flags

from caption_jax.cli.closing_summary import print_end_of_evaluation
from caption_jax.cli.command_flags import get_context_kind, spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.evaluation.external_data import check_context, open_external_data
from caption_jax.evaluation.final_evaluation import evaluate_split
from caption_jax.evaluation.report.terminal import print_evaluation
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.runs.experiment import open_experiment
from input_pipeline.files import absolute_path
from input_pipeline.terminal_text import escape


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the results to the workdir and prints them; returns the exit status."""
    workdir, spec, context = absolute_path(options.workdir), spec_from_flags(options), get_context_kind(options)
    external_data, splits, split = None, None, options.split
    with display_from_flags(options) as display:
        if options.data:
            check_context(spec.model.context.max_texts, context)
            with display.phase("reading the data"):
                external_split = options.split if options["split"].present else ""
                external_data = open_external_data(options.data, spec.data, external_split, spec.limits)
            splits, split = {external_data.split.name: external_data.split}, external_data.split.name
            if jax.process_index() == 0:
                print(f"captions: {', '.join(map(escape, external_data.captions))}")
        experiment = open_experiment(workdir, spec, splits, display)
        scored_evaluation = evaluate_split(
            experiment, split, options.images, context, external_data, options.checkpoint, options.weights
        )
    print_scored_evaluation(scored_evaluation)
    if jax.process_index() == 0:
        print_end_of_evaluation(options.workdir, scored_evaluation)
    return 0


def print_scored_evaluation(scored_evaluation: ScoredEvaluation | None) -> None:
    """Prints a scored evaluation in process 0; does nothing if it is None."""
    if scored_evaluation is not None and jax.process_index() == 0:
        print_evaluation(scored_evaluation)
