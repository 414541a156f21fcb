"""Dry runs (`--dry_run`), which perform a single training step without writing any files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
from etils import epath

from caption_jax.objectives.constants import prepare_constants
from caption_jax.parameters.freezing import phases
from caption_jax.runs.checkpoints import has_checkpoint
from caption_jax.runs.experiment import Experiment, prepare_experiment
from caption_jax.runs.initial_variables import initial_variables
from caption_jax.runs.step_images import check_step_images
from caption_jax.specs import RunSpec
from caption_jax.specs.conversion import as_lines
from caption_jax.telemetry.progress import SILENT, Display
from caption_jax.training.program import make_program
from caption_jax.training.run_parts import make_validation_evaluator, open_batches
from input_pipeline.data_spec import FeatureCacheSpec, PixelCacheSpec
from input_pipeline.extras import require
from input_pipeline.files import absolute_path
from input_pipeline.terminal_text import escape


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    Attributes:
        spec: the run's spec, with data-dependent values resolved.
        images: number of images by split.
        captions: number of captions by split.
        example: name of the first training image, and its first caption.
        parameters: number of parameters of the model.
        vocabulary_size: number of tokens in the vocabulary.
        metrics: metrics of the first training step, such as "loss".
        would_resume: whether training would resume a run in the workdir. The dry run performs the first step in either
            case.
    """

    spec: RunSpec
    images: dict[str, int]
    captions: dict[str, int]
    example: tuple[str, str]
    parameters: int
    vocabulary_size: int
    metrics: dict[str, float]
    would_resume: bool


def dry_run(
    spec: RunSpec, workdir: str | epath.Path, display: Display = SILENT, *, allow_data_change: bool = False
) -> DryRun:
    """Reads the data and performs the first update on the first batch, without writing to the workdir.

    The step decodes images even if the config enables the feature cache or the pixel cache, because the cache would
    first have to be filled with the features or pixels of all images.

    Raises:
        ConfigError: config, data and workdir are inconsistent, as in `train_and_evaluate`.
        MissingPackageError: the `train` extra is not installed.
    """
    require("training", "grain")
    experiment = prepare_experiment(spec, absolute_path(workdir), display, allow_data_change=allow_data_change)
    resolved_spec = experiment.spec
    with display.phase("building the model"):
        make_validation_evaluator(experiment)  # raises errors that training would raise
        program = make_program(experiment.description, experiment.mesh, resolved_spec.train.steps)
        check_step_images(resolved_spec, program.abstract_state.params)
        program = program.with_constants(prepare_constants(program.objectives, experiment))
        state = program.start(initial_variables(experiment))
    _, frozen = phases(state.params, resolved_spec.optimizer.rules)[0]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    with (
        open_batches(_without_caches(experiment), state) as batches,
        display.phase("compiling the training step"),
    ):
        _, metrics = program.update(frozen)(state, next(batches), program.constants)
    return DryRun(
        resolved_spec,
        {name: len(split) for name, split in experiment.splits.items()},
        {name: len(split.captions) for name, split in experiment.splits.items()},
        _get_example(experiment),
        parameters,
        experiment.description.vocabulary.size,
        {name: float(value) for name, value in metrics.items()},
        has_checkpoint(experiment.workdir),
    )


def print_dry_run(result: DryRun) -> None:
    """Prints the spec, with one key per line, and the result of the step, on the main process only."""
    if jax.process_index():
        return
    print("\n".join(as_lines(result.spec)))
    print("\nimages: " + ", ".join(f"{name} {count:,}" for name, count in result.images.items()))
    print("captions: " + ", ".join(f"{name} {count:,}" for name, count in result.captions.items()))
    name, caption = result.example
    print(f"the first training image is {escape(name)}: {caption!r}")
    print(f"model: {result.parameters:,} parameters, vocabulary of {result.vocabulary_size:,} tokens")
    if result.spec.data.feature_cache.stage:
        print("this step read pixels; without --dry_run, the features of all images are computed first")
    if result.spec.data.pixel_cache.use == "always":
        print("this step decoded images; without --dry_run, the pixels of all images are written first")
    other_metrics = [f"{name} {value:.4f}" for name, value in result.metrics.items() if name != "loss"]
    print(", ".join([f"step 1: loss {result.metrics['loss']:.4f}", *other_metrics]))
    if result.would_resume:
        print("the workdir contains a run: without --dry_run, training resumes it from its last checkpoint")


def _get_example(experiment: Experiment) -> tuple[str, str]:
    record = experiment.split("train")[0]
    return record.name, record.captions[0]


def _without_caches(experiment: Experiment) -> Experiment:
    description = experiment.description
    data = dataclasses.replace(description.spec.data, feature_cache=FeatureCacheSpec(), pixel_cache=PixelCacheSpec())
    spec = dataclasses.replace(description.spec, data=data)
    return dataclasses.replace(experiment, description=dataclasses.replace(description, spec=spec))
