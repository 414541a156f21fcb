"""The parts of a run that are built before its first step: the program, the validation evaluator and the batches."""

from __future__ import annotations

import jax

from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.feature_cache.features import prepare_features
from caption_jax.feature_cache.pixel_cache import prepare_pixels
from caption_jax.objectives.constants import compute_fingerprints, prepare_constants, store_constants
from caption_jax.retrieval.context_captions import default_kind, open_context
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.step_images import check_step_images
from caption_jax.training.batch_placer import (
    choose_block_layout,
    choose_packing,
    choose_row_lengths,
    make_batch_placer,
)
from caption_jax.training.program import Program, make_program
from caption_jax.training.state import TrainState
from input_pipeline.batches import train_batches
from input_pipeline.prefetch import Prefetched, prefetch_to_device


def make_program_with_constants(experiment: Experiment, steps: int) -> tuple[Program, dict[str, str]]:
    """Builds the program of a run, stores its objectives' constants in the workdir and copies them to the devices.

    Returns:
        The program, and fingerprints of the constants, which are compared when the run resumes.
    """
    program = make_program(experiment.description, experiment.mesh, steps)
    check_step_images(experiment.spec, program.abstract_state.params)
    constants = prepare_constants(program.objectives, experiment)
    if jax.process_index() == 0:
        store_constants(program.objectives, constants, experiment.workdir)
    return program.with_constants(constants), compute_fingerprints(constants)


def make_validation_evaluator(experiment: Experiment) -> SplitEvaluator | None:
    """Creates the evaluator that runs every `config.train.eval_every` steps; None if there is no validation split.

    Raises:
        ConfigError: an evaluator is incompatible with the run, or none reports `config.train.best_metric`.
    """
    if "val" not in experiment.splits:
        return None
    train = experiment.spec.train
    evaluator = SplitEvaluator(experiment, "val", train.eval_images)
    evaluator.check_metric(train.best_metric)
    return evaluator


def open_batches(experiment: Experiment, state: TrainState) -> Prefetched:
    """Opens the iterator over training batches, which a background thread transfers to the devices ahead of time."""
    spec, description = experiment.spec, experiment.description
    context = open_context(experiment, "train", default_kind(experiment))
    features = prepare_features(experiment, {"params": state.params, "batch_stats": state.batch_stats})
    layout, row_lengths, packing = None, (), choose_packing(spec, experiment.mesh)
    with experiment.display.phase("measuring the captions"):
        arguments = spec, experiment.mesh, experiment.split("train"), description.vocabulary
        if packing == "blocks":
            layout = choose_block_layout(*arguments)
        elif packing == "always":
            row_lengths = choose_row_lengths(*arguments)
    batches = train_batches(
        experiment.split("train"),
        description.preprocessing,
        description.vocabulary,
        spec.data,
        spec.seed,
        stored=features or prepare_pixels(experiment),
        context=context,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return prefetch_to_device(
        batches, make_batch_placer(spec, experiment.mesh, layout, row_lengths), spec.data.prefetch
    )
