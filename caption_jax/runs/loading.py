"""Loads trained models for inference, from a workdir or a standalone artifact."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from caption_jax.errors import ConfigError, MissingFileError, UserError
from caption_jax.named_models import locate_model
from caption_jax.parameters.stored_dtypes import FLOAT32, check_stored_dtype, convert_weights
from caption_jax.runs.artifact import (
    MANIFEST,
    POINTER,
    WEIGHTS,
    artifact_folder,
    pointer_step,
    read_artifact,
    read_pointer,
)
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import CHECKPOINT_CHOICES, Weights, check_choice, flatten_arrays, unflatten_arrays
from caption_jax.runs.workdir import read_description
from input_pipeline.files import storage_path

PyTree = Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The description of a run, and its weights at one step."""

    description: RunDescription
    weights: Weights


def load_model(
    source: str | os.PathLike[str],
    which: str | int = "best",
    sharding: jax.sharding.Sharding | None = None,
    dtype: str = FLOAT32,
) -> Model:
    """Loads a model onto devices.

    Args:
        source: see `read_model`.
        which: see `read_model`.
        sharding: sharding of the arrays; the first local device by default. All participating processes must call this.
        dtype: see `read_model`.
    """
    model = read_model(source, which, dtype)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return Model(model.description, Weights(put_on_devices(model.weights.variables, sharding), model.weights.step))


def load_weights(
    source: str | os.PathLike[str],
    which: str | int = "best",
    sharding: jax.sharding.Sharding | None = None,
    dtype: str = FLOAT32,
) -> Weights:
    """Like `load_model`, but returns only the weights."""
    return load_model(source, which, sharding, dtype).weights


def read_model(source: str | os.PathLike[str], which: str | int = "best", dtype: str = FLOAT32) -> Model:
    """Reads a model into NumPy arrays.

    Args:
        source: workdir of a run, an artifact (a `model-<step>` folder, which may have been moved) or an exported
            folder; local or on a bucket; or the name of an exported folder on the Hugging Face Hub, `hf://owner/name`.
        which: "best" (by validation metric, or the last if no evaluation has run yet), "last", or a step that the run
            has retained. Checkpoints are slower to read than the best model. An artifact only has "best" and its step.
        dtype: dtype of the large arrays, one of `stored_dtypes.CHOICES`. `stored_dtypes.restore` makes variables for
            the model of those that are not float32.

    Raises:
        MissingFileError: the run does not exist or has not saved a model yet, or a file of the model is missing.
        WorkdirError: a file of the model is corrupted, and the run has no intact checkpoint of the same step.
        ConfigError: `which` or `dtype` is unknown, or another checkpoint was requested from an artifact.
        StorageError: a model on the Hub cannot be downloaded.
    """
    which = str(which)
    check_choice(which)
    check_stored_dtype(dtype)
    model = _read_folder(storage_path(locate_model(source)), which)
    return Model(model.description, Weights(convert_weights(model.weights.variables, dtype), model.weights.step))


def _read_folder(folder: epath.Path, which: str) -> Model:
    if (folder / MANIFEST).exists():
        model = Model(*read_artifact(folder)) if which != "last" else None
        if model is None or which not in ("best", str(model.weights.step)):
            raise ConfigError(f"{folder} is a single model: checkpoint {which!r} is in the workdir of its run")
        return model
    if (folder / WEIGHTS).exists():  # which a workdir does not contain
        raise MissingFileError(
            f"{folder / MANIFEST} is missing: {folder} is incomplete, or was not written by caption-jax; pass the "
            "workdir of a run, or a folder that caption-jax export --to=folder wrote"
        )
    if which == "best" and (best := _read_best(folder)):
        return best
    if which not in CHECKPOINT_CHOICES and (artifact_folder(folder, int(which)) / MANIFEST).exists():
        return _read_artifact_or_checkpoint(artifact_folder(folder, int(which)), int(which))
    return _read_checkpoint(folder, which)


def put_on_devices(variables: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Transfers NumPy arrays, which are equal in all processes, to the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(variables, sharding)
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), variables)


def _read_best(workdir: epath.Path) -> Model | None:
    """Reads the model that the workdir points to; returns None if there is no pointer."""
    pointer = read_pointer(workdir)
    while pointer is not None:
        try:
            return Model(*read_artifact(workdir / pointer.folder, pointer.manifest))
        except UserError:
            newer = read_pointer(workdir)
            if newer == pointer:
                return _read_artifact_or_checkpoint(workdir / pointer.folder, pointer_step(pointer), pointer.manifest)
            pointer = newer  # the run has since written two better models and deleted this one
    return None


def _read_artifact_or_checkpoint(folder: epath.Path, step: int, manifest_hash: str | None = None) -> Model:
    """Reads an artifact in a workdir, or if it is damaged, the checkpoint of the same step, which has equal weights."""
    try:
        return Model(*read_artifact(folder, manifest_hash))
    except UserError as error:
        try:
            model = _read_checkpoint(folder.parent, str(step))
        except UserError:
            raise error from None
        log.warning(
            "%s: reading the equal weights in %s/checkpoints instead. The training command writes the model again",
            *(str(error).partition(": ")[0], folder.parent),
        )
        return model


def _read_checkpoint(workdir: epath.Path, which: str) -> Model:
    from caption_jax.runs.checkpoints import read_weights  # imports Orbax, which artifacts do not need

    description = read_description(workdir)
    weights = read_weights(workdir, which)
    if which == "best":
        log.warning(
            "%s has no %s because an older release wrote it: reading its checkpoints, which is slower. Run the "
            "training command again to write one",
            *(workdir, POINTER),
        )
    variables = unflatten_arrays(flatten_arrays(weights.variables))  # the same tree as in an artifact
    return Model(description, Weights(variables, weights.step))
