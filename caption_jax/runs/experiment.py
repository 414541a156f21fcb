"""Setup of a run from its config and data: the mesh, splits, vocabulary, preprocessing and model."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

import jax
from absl import logging
from etils import epath

from caption_jax.backbones.protocol import Settings, stored_settings
from caption_jax.errors import ConfigError, MissingFileError
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.named_models import locate_model
from caption_jax.parameters.sharding import make_mesh
from caption_jax.runs import workdir as workdir_files
from caption_jax.runs.agreement import prepare_together
from caption_jax.runs.artifact import check_no_model
from caption_jax.runs.checkpoints import has_checkpoint
from caption_jax.runs.data_manifest import Manifest, check_data, write_manifest
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.roberta_checkpoint import check_decoder_weights, text_encoder_settings
from caption_jax.runs.start_summary import describe_start
from caption_jax.specs import DatasetFacts, RunSpec, differences, resolve
from caption_jax.specs.resolve import describe_fit, find_contradictions, use_stored_values
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.files import delete_stale_temporaries
from input_pipeline.images import Preprocessing
from input_pipeline.records import Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.tokenizer import Vocabulary, build_vocabulary


@dataclass(frozen=True)
class Experiment:
    """The parts of a run that do not change during training. `description` is stored in `workdir`.

    Attributes:
        workdir: workdir of the run.
        description: description of the run; values of its spec are fitted to the data.
        mesh: device mesh.
        splits: splits by name.
        facts: properties of the training data; None if it was not read because the run is only evaluated.
        resumes: whether the workdir contains a checkpoint to resume from.
        manifest: record of the data to write to the workdir; None if it has the right one.
        allows_data_change: whether a resumed run may continue with data that has changed.
        display: shows the progress of everything that is done with the run.
    """

    workdir: epath.Path
    description: RunDescription
    mesh: jax.sharding.Mesh
    splits: dict[str, Split]
    facts: DatasetFacts | None = None
    resumes: bool = False
    manifest: Manifest | None = None
    allows_data_change: bool = False
    display: Display = SILENT

    @property
    def spec(self) -> RunSpec:
        """The validated config, with values fitted to the data."""
        return self.description.spec

    def model(self, frozen_norms: frozenset[str] = frozenset()) -> ImageCaptioningModel:
        """Builds the model; see `build_model` for `frozen_norms`."""
        return self.description.model(frozen_norms)

    def split(self, name: str) -> Split:
        """Returns a split by name.

        Raises:
            DataError: the data has no such split.
        """
        return get_split(self.splits, name)


def start_experiment(
    spec: RunSpec, workdir: epath.Path, display: Display = SILENT, *, allow_data_change: bool = False
) -> Experiment:
    """Sets up training in a new workdir, or resumes the run in an existing one. `lock_workdir` has checked it.

    Args:
        spec: the config of the run.
        workdir: workdir of the run.
        display: shows the progress.
        allow_data_change: whether a run may be resumed although its data has changed.

    Raises:
        ConfigError: the config is incompatible with the data.
        WorkdirError: the workdir contains a run or model that is incompatible with the config, or the data of the run
            has changed.
        ProcessesError: several processes disagree on the config or the data.
    """
    experiment = prepare_experiment(spec, workdir, display, allow_data_change=allow_data_change)
    if jax.process_index() == 0:
        delete_stale_temporaries(workdir, depth=3)  # caches are in folders of folders
        if experiment.resumes:
            workdir_files.write_spec(workdir, experiment.spec, spec)
        else:
            workdir_files.write_description(workdir, experiment.description, spec)
        if experiment.manifest is not None:
            write_manifest(workdir, experiment.manifest)
        lines = describe_start(experiment).splitlines()
        logging.info("\n".join(["%s"] * len(lines)), *lines)  # line breaks in arguments are escaped
    _log_fit(spec, experiment)
    return experiment


def prepare_experiment(
    spec: RunSpec, workdir: epath.Path, display: Display = SILENT, *, allow_data_change: bool = False
) -> Experiment:
    """Like `start_experiment`, but does not write to the workdir.

    Raises:
        ConfigError: see `start_experiment`.
        WorkdirError: see `start_experiment`.
    """
    return prepare_together(lambda: _prepare(spec, workdir, display, allow_data_change), trains=True)


def open_experiment(
    workdir: epath.Path, spec: RunSpec, splits: dict[str, Split] | None = None, display: Display = SILENT
) -> Experiment:
    """Opens an existing run for evaluation, with `spec` instead of the stored spec.

    Args:
        workdir: workdir of the run.
        spec: the spec to evaluate with; values that are fitted to the data are those of the run.
        splits: splits by name; those in `spec.data` if None.
        display: shows the progress.

    Raises:
        FileNotFoundError: the folder is not the workdir of a run.
        ValueError: the evaluation batch size is not a multiple of the number of devices.
        ProcessesError: several processes disagree on the config, the data or the model.
    """
    return prepare_together(lambda: _open(workdir, spec, splits, display), trains=False)


def _prepare(spec: RunSpec, workdir: epath.Path, display: Display, allow_data_change: bool) -> Experiment:
    spec.decode.check_no_ensemble("train")
    spec = spec.import_extensions()
    mesh = make_mesh(spec.mesh)
    _check_batch_sizes(mesh, {"data.eval_batch_size": spec.data.eval_batch_size})
    _check_batch_sizes(mesh, {"data.batch_size": spec.data.batch_size}, spec.optimizer.grad_accum_steps)
    with display.phase("reading the data"):
        splits = open_splits(spec.data, spec.limits)
    if "train" not in splits:
        raise ConfigError(f"config.data has no train split; available splits are {', '.join(sorted(splits))}")
    resuming = has_checkpoint(workdir)  # a run killed before its first checkpoint starts over
    if not resuming:
        check_no_model(workdir)
    facts = DatasetFacts(
        len(splits["train"]),
        batch_multiple=mesh.shape["data"] * spec.optimizer.grad_accum_steps,
        device_kind=mesh.devices.flat[0].device_kind,
    )
    if resuming:
        description = _resume(spec, workdir, facts)
    else:
        with display.phase("building the vocabulary"):
            vocabulary, caption_lengths = build_vocabulary(spec.data, splits["train"].captions)
        facts = dataclasses.replace(facts, caption_lengths=caption_lengths)
        description = _describe(resolve(spec, facts), vocabulary)
    manifest = None
    if jax.process_index() == 0:
        with display.phase("comparing the data" if resuming else "recording the data"):
            manifest = check_data(workdir, splits, resumes=resuming, allow_change=allow_data_change)
    return Experiment(workdir, description, mesh, splits, facts, resuming, manifest, allow_data_change, display)


def _open(workdir: epath.Path, spec: RunSpec, splits: dict[str, Split] | None, display: Display) -> Experiment:
    spec = spec.import_extensions()
    stored = workdir_files.read_description(workdir)
    spec = use_stored_values(spec, *workdir_files.read_specs(workdir))
    mesh = make_mesh(spec.mesh)
    _check_batch_sizes(mesh, {"data.eval_batch_size": spec.data.eval_batch_size})
    description = RunDescription(spec, stored.model_settings, stored.preprocessing, stored.vocabulary)
    if splits is None:
        with display.phase("reading the data"):
            splits = open_splits(spec.data, spec.limits)
    return Experiment(workdir, description, mesh, splits, display=display)


def _describe(spec: RunSpec, vocabulary: Vocabulary) -> RunDescription:
    settings = _backbone_settings(spec)
    data = spec.data
    joint_embedding, context = spec.objective.contrastive_weight > 0, spec.model.context.max_texts > 0
    text_encoder = text_encoder_settings(spec, vocabulary) if joint_embedding or context else None
    if spec.model.decoder.weights:
        check_decoder_weights(spec, vocabulary)
    model_settings = ModelSettings(
        vocabulary.size, data.max_length, stored_settings(settings), text_encoder, joint_embedding
    )
    mean, std = tuple(map(float, settings.mean)), tuple(map(float, settings.std))
    preprocessing = Preprocessing(data.image_size, data.resize, data.interpolation, mean, std)
    return RunDescription(spec, model_settings, preprocessing, vocabulary)


def _backbone_settings(spec: RunSpec) -> Settings:
    """Returns the settings of the initial weights of the image backbone."""
    encoder = spec.model.encoder
    if spec.init_from:
        try:
            source = workdir_files.read_description(locate_model(spec.init_from))
        except FileNotFoundError as error:
            raise MissingFileError(f"config.init_from: {error}") from None
        if encoder.accepts_weights_of(source.spec.model.encoder):  # `init_from` takes precedence over other weights
            return dataclasses.replace(source.backbone_settings, source=spec.init_from)
    return encoder.settings()


def _log_fit(configured: RunSpec, experiment: Experiment) -> None:
    """Logs the values that were fitted to the data of a new run, and values that are probably mistakes."""
    if experiment.resumes:
        return
    fit = describe_fit(configured, experiment.spec)
    if fit:
        logging.info("fitted to %d training images: %s", experiment.facts.train_images, fit)
    for message in find_contradictions(experiment.spec, experiment.facts):
        logging.warning("%s", message)


def _resume(spec: RunSpec, workdir: epath.Path, facts: DatasetFacts) -> RunDescription:
    stored = workdir_files.read_description(workdir)
    spec = resolve(use_stored_values(spec, *workdir_files.read_specs(workdir)), facts)
    stored_spec = stored.spec
    with contextlib.suppress(ConfigError):  # otherwise, the config of the extension is compared as it was written
        stored_spec = stored_spec.import_extensions()
    changes = differences(stored_spec, spec)
    for key, (old, new) in changes.items():
        logging.warning("config.%s changed since this run was started: %r -> %r", key, old, new)
    workdir_files.check_resumable(changes, workdir)
    return RunDescription(spec, stored.model_settings, stored.preprocessing, stored.vocabulary)


def _check_batch_sizes(mesh: jax.sharding.Mesh, sizes: dict[str, int], microbatches: int = 1) -> None:
    devices = mesh.shape["data"]
    for key, size in sizes.items():
        if size % (devices * microbatches):
            raise ConfigError(
                f"config.{key}={size} must be a multiple of {devices * microbatches} ({devices} devices"
                + (f" x {microbatches} microbatches" if microbatches > 1 else "")
                + f"): set it to {max(size // (devices * microbatches), 1) * devices * microbatches}"
            )
