"""Constants that objectives compute from the training split, stored in `<workdir>/objectives/<label>.npz`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from caption_jax.errors import WorkdirError
from caption_jax.objectives.objective import Objective
from caption_jax.parameters.paths import flatten, unflatten
from caption_jax.runs.checkpoints import has_checkpoint
from caption_jax.runs.experiment import Experiment
from caption_jax.specs.extensions import import_path
from input_pipeline.files import write_atomically

PyTree = Any
_DESCRIPTION = "about"  # name of the file entry that describes the objective, in JSON


def prepare_constants(objectives: Mapping[str, Objective], experiment: Experiment) -> dict[str, PyTree]:
    """Returns the constants of all objectives that have any, by label.

    A resumed run reads its stored constants, unless the fields of the objective have changed since.

    Args:
        objectives: objectives by label.
        experiment: the experiment of the run.
    """
    constants, is_resumed = {}, has_checkpoint(experiment.workdir)
    for label, objective in objectives.items():
        stored = _read(_make_path(experiment.workdir, label)) if is_resumed else None
        if stored is not None and stored[0] == _describe(objective):
            constants[label] = stored[1]
        elif tree := objective.prepare(experiment.split("train"), experiment.description.vocabulary):
            constants[label] = {name: np.asarray(array) for name, array in flatten(tree).items()}
    return {label: unflatten(arrays) for label, arrays in constants.items()}


def store_constants(objectives: Mapping[str, Objective], constants: Mapping[str, PyTree], workdir: epath.Path) -> None:
    """Writes the constants of objectives, by label, to the workdir of the run."""
    for label, tree in constants.items():
        path = _make_path(workdir, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _to_npz(_describe(objectives[label]), flatten(tree)))


def load_constants(objectives: Mapping[str, Objective], workdir: epath.Path) -> dict[str, PyTree]:
    """Reads the constants of the objectives, by label, from the workdir of a run."""
    stored = {label: _read(_make_path(workdir, label)) for label in objectives}
    return {label: unflatten(contents[1]) for label, contents in stored.items() if contents is not None}


def compute_fingerprints(constants: Mapping[str, PyTree]) -> dict[str, str]:
    """Returns a hash of the constants of each objective, by label."""
    return {label: _compute_fingerprint(flatten(tree)) for label, tree in constants.items()}


def check_same_constants(saved: Mapping[str, str], current: Mapping[str, str], workdir: epath.Path) -> None:
    """Raises WorkdirError if constants differ from those that a checkpoint was trained with.

    Args:
        saved: fingerprints stored in the checkpoint, by label.
        current: fingerprints of the constants of the resumed run, by label.
        workdir: workdir of the run, for the error message.
    """
    for label, fingerprint in current.items():
        if saved.get(label, fingerprint) != fingerprint:
            raise WorkdirError(
                f"the constants of config.objective.terms.{label} differ from those that the run in {workdir} was "
                "trained with: the fields or the code of the objective, or the training captions, have changed. Revert "
                f"the change, or train in another workdir with --config.init_from={workdir} to start from the weights "
                "of this run."
            )


def _make_path(workdir: epath.Path, label: str) -> epath.Path:
    return workdir / "objectives" / f"{label}.npz"


def _describe(objective: Objective) -> dict[str, Any]:
    """Returns the class of an objective and all fields except the weight, which does not affect the constants."""
    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    fields.pop("weight")
    return json.loads(json.dumps({"name": import_path(type(objective)), **fields}, default=repr))


def _to_npz(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    entries = {f"array/{name}": array for name, array in arrays.items()}
    np.savez(buffer, **{_DESCRIPTION: np.array(json.dumps(description))}, **entries)
    return buffer.getvalue()


def _read(path: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns the description and the arrays in a file, or None if it does not exist."""
    if not path.exists():
        return None
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = {name.removeprefix("array/"): file[name] for name in file.files if name != _DESCRIPTION}
        return json.loads(str(file[_DESCRIPTION])), arrays


def _compute_fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
