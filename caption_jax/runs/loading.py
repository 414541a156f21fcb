"""A trained model for inference: from a workdir, by the pointer to its best model, or from a model's own folder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from caption_jax.errors import ConfigError, UserError
from caption_jax.runs.artifact import MANIFEST, POINTER, read_artifact, read_pointer
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import CHOICES, Weights, flat, nested
from caption_jax.runs.workdir import read_description

PyTree = Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A run's description and the weights of one of its steps."""

    description: RunDescription
    weights: Weights


def load_model(
    source: str | os.PathLike[str], which: str = "best", sharding: jax.sharding.Sharding | None = None
) -> Model:
    """Loads a model onto devices.

    Args:
        source: see `read_model`.
        which: see `read_model`.
        sharding: where the arrays go; all processes that take part in it call this. By default the first local device.
    """
    model = read_model(source, which)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return Model(model.description, Weights(_placed(model.weights.variables, sharding), model.weights.step))


def load_weights(
    source: str | os.PathLike[str], which: str = "best", sharding: jax.sharding.Sharding | None = None
) -> Weights:
    """The weights alone of what `load_model` loads."""
    return load_model(source, which, sharding).weights


def read_model(source: str | os.PathLike[str], which: str = "best") -> Model:
    """Reads a model into NumPy arrays.

    Args:
        source: a run's workdir, or a folder `model-<step>` of one, wherever that is now; local or on a bucket.
        which: "best" (by the run's validation metric; the last one if nothing has been evaluated yet) or "last", which
            takes longer: it is read from the checkpoint to resume from. A model's own folder holds one, the "best".

    Raises:
        MissingFileError: there is no such run, or it has saved nothing yet; or a file of the model is missing.
        WorkdirError: a file of the model is not as it was written.
        ConfigError: `which` is neither of the two, or "last" of a model's own folder.
    """
    if which not in CHOICES:
        raise ConfigError(f"which checkpoint? 'best' or 'last', not {which!r}")
    model = _read(epath.Path(source), which)
    for extension in model.description.spec.unavailable:
        log.warning("%s; captioning does without it", extension)
    return model


def _read(folder: epath.Path, which: str) -> Model:
    if (folder / MANIFEST).exists():
        if which == "last":
            raise ConfigError(f"{folder} is a single model: the last checkpoint is in the workdir of its run")
        return Model(*read_artifact(folder))
    if which == "best" and (best := _read_best(folder)):
        return best
    return _read_checkpoint(folder, which)


def _placed(variables: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    if sharding.is_fully_addressable:
        return jax.device_put(variables, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, a.__getitem__), variables)


def _read_best(workdir: epath.Path) -> Model | None:
    """The model that the workdir's pointer names; None without a pointer."""
    pointer = read_pointer(workdir)
    while pointer is not None:
        try:
            return Model(*read_artifact(workdir / pointer.folder, pointer.manifest))
        except UserError:
            newer = read_pointer(workdir)
            if newer == pointer:
                raise
            pointer = newer  # the run has moved on twice since, and deleted what was being read
    return None


def _read_checkpoint(workdir: epath.Path, which: str) -> Model:
    from caption_jax.runs.checkpoints import read_weights  # Orbax: not needed by a start that reads an artifact

    description = read_description(workdir)
    weights = read_weights(workdir, which)
    if which == "best":
        log.warning(
            "%s has no %s, as runs of older releases: reading its checkpoints, which takes longer. Its training "
            "command, given once more, writes one",
            *(workdir, POINTER),
        )
    return Model(description, Weights(nested(flat(weights.variables)), weights.step))  # the tree of an artifact
