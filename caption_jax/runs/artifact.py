"""A trained model as one folder, `model-<step>/`, and the file of a workdir that names the best one.

The folder holds `model.safetensors`, what `workdir.write_description` writes, and, written last, `manifest.json` with
the size and SHA-256 of each. It needs nothing else: it may be moved, renamed and copied (docs/workdir.md).

Buckets have no rename, so nothing is ever replaced inside such a folder. A workdir moves on to another model by its
`best_model.json`, one small file that is replaced at once and that names a folder and the SHA-256 of its manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etils import epath
from safetensors import SafetensorError

from caption_jax.errors import MissingFileError, UserError, WorkdirError
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import Weights, read_safetensors, to_safetensors
from caption_jax.runs.workdir import read_description, write_description
from input_pipeline.files import write_atomically

MANIFEST, POINTER = "manifest.json", "best_model.json"
_WEIGHTS = "model.safetensors"
_FORMAT, _VERSION = "caption-jax model", 1
_NAME = re.compile(r"model-(\d+)")
_REMEDY = (
    "copy the folder again from where it is intact, or load the run's last checkpoint: which='last', or "
    "--checkpoint=last on the command line"
)


@dataclass(frozen=True)
class Pointer:
    """The model that a workdir calls its best.

    Attributes:
        folder: name of its folder in the workdir.
        manifest: SHA-256 of the folder's manifest.
    """

    folder: str
    manifest: str


def artifact_folder(workdir: epath.Path, step: int) -> epath.Path:
    """Where the model of a step is."""
    return workdir / f"model-{step}"


def artifact_steps(workdir: epath.Path) -> list[int]:
    """Steps of the models in a workdir, complete or not, in ascending order."""
    if not workdir.exists():
        return []
    return sorted(int(match[1]) for path in workdir.iterdir() if (match := _NAME.fullmatch(path.name)))


def step_of(pointer: Pointer) -> int:
    """The step that a pointer's folder is named after."""
    return int(_NAME.fullmatch(pointer.folder)[1])


def write_artifact(workdir: epath.Path, description: RunDescription, weights: Weights) -> Pointer:
    """Writes the model of a step; deletes what a killed run may have left of it.

    Args:
        workdir: of the run.
        description: of the run.
        weights: NumPy arrays.

    Returns:
        What `write_pointer` takes to switch to it.
    """
    folder = artifact_folder(workdir, weights.step)
    if folder.exists():
        folder.rmtree()
    write_description(folder, description)
    files = {name: _listed((folder / name).read_bytes()) for name in _names(folder)}
    content = to_safetensors(weights.variables)
    write_atomically(folder / _WEIGHTS, content)
    files[_WEIGHTS] = _listed(content)
    kind = {"format": _FORMAT, "version": _VERSION, "step": weights.step}
    manifest = json.dumps({**kind, "files": files}, indent=2).encode()
    write_atomically(folder / MANIFEST, manifest)
    return Pointer(folder.name, hashlib.sha256(manifest).hexdigest())


def read_artifact(folder: epath.Path, manifest_hash: str | None = None) -> tuple[RunDescription, Weights]:
    """Reads a model whose files are all as they were written.

    Args:
        folder: wherever it is now.
        manifest_hash: SHA-256 that the manifest has to have.

    Returns:
        The description, and NumPy arrays.

    Raises:
        MissingFileError: a file is missing; it is named.
        WorkdirError: a file has another content than it was written with, or the folder is of a later release.
    """
    manifest = _read_manifest(folder, manifest_hash)
    for name, listed in manifest["files"].items():
        if name != _WEIGHTS and _listed(_read(folder / name)) != listed:
            raise _altered(folder / name)
    file = folder / _WEIGHTS
    if _size(file) != manifest["files"][_WEIGHTS]["bytes"]:
        raise _altered(file)
    try:
        variables, digest = read_safetensors(file)
    except SafetensorError as error:
        raise _altered(file) from error
    if digest != manifest["files"][_WEIGHTS]["sha256"]:
        raise _altered(file)
    return read_description(folder), Weights(variables, manifest["step"])


def is_complete(folder: epath.Path, manifest_hash: str | None = None) -> bool:
    """Whether a folder holds a manifest (of that SHA-256) and files of the sizes in it; their content is not read."""
    try:
        manifest = _read_manifest(folder, manifest_hash)
        return all(_size(folder / name) == listed["bytes"] for name, listed in manifest["files"].items())
    except UserError:
        return False


def pointer_to(folder: epath.Path) -> Pointer:
    """A pointer to a complete model."""
    return Pointer(folder.name, hashlib.sha256(_read(folder / MANIFEST)).hexdigest())


def write_pointer(workdir: epath.Path, pointer: Pointer) -> None:
    """Makes a complete model the best one of its workdir."""
    content = {"folder": pointer.folder, "manifest_sha256": pointer.manifest}
    write_atomically(workdir / POINTER, json.dumps(content, indent=2) + "\n")


def read_pointer(workdir: epath.Path) -> Pointer | None:
    """Which model is the best one of a workdir; None where it has none.

    Raises:
        WorkdirError: the file is damaged.
    """
    file = workdir / POINTER
    try:
        content = json.loads(file.read_bytes())
        pointer = Pointer(str(content["folder"]), str(content["manifest_sha256"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"{file} is damaged ({error}): delete it to read {workdir}/checkpoints instead") from error
    if not _NAME.fullmatch(pointer.folder):
        raise WorkdirError(f"{file} names {pointer.folder!r}, no model-<step>: delete it to read {workdir}/checkpoints")
    return pointer


def check_no_model(workdir: epath.Path) -> None:
    """Raises WorkdirError where a run from scratch would replace the model of another one."""
    pointer = read_pointer(workdir)
    if pointer is not None:
        raise WorkdirError(
            f"{workdir} holds {pointer.folder}, the best model of a run, but no checkpoint to go on from: train in "
            f"another workdir (with --config.init_from={workdir} to start from that model), or delete "
            f"{workdir / POINTER}"
        )


def _read_manifest(folder: epath.Path, expected: str | None) -> dict[str, Any]:
    file = folder / MANIFEST
    content = _read(file)
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise _altered(file)
    try:
        manifest = json.loads(content)
        kind = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _altered(file) from error
    if kind != (_FORMAT, _VERSION):
        raise WorkdirError(
            f"{file} is of format {kind[0]!r}, version {kind[1]}; this release reads {_FORMAT!r}, version {_VERSION}: "
            "use the release that wrote it"
        )
    return manifest


def _names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Names of all files below a folder, relative to it."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from _names(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def _listed(content: bytes) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read(file: epath.Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise _missing(file) from error


def _size(file: epath.Path) -> int:
    try:
        return file.stat().length
    except FileNotFoundError as error:
        raise _missing(file) from error


def _missing(file: epath.Path) -> MissingFileError:
    return MissingFileError(f"{file} is missing, so the model cannot be loaded: {_REMEDY}")


def _altered(file: epath.Path) -> WorkdirError:
    return WorkdirError(f"{file} is not as it was written (its size or SHA-256 differs): {_REMEDY}")
