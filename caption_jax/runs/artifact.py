"""Model artifacts: self-contained folders `model-<step>/`, and the pointer to the best one in a workdir.

An artifact consists of `model.safetensors`, the files of `workdir.write_description`, and `manifest.json`, which is
written last and lists the size and SHA-256 of each file. It can be moved, renamed and copied (docs/workdir.md).

Buckets have no atomic rename of folders, so the files of an artifact are never replaced. To switch to another model, a
run atomically replaces `best_model.json`, which contains the name of an artifact and the SHA-256 of its manifest.

The folders that `caption-jax export --to=folder` writes are read here too. They have the same manifest, but another
description (`exported_folder.py`).
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

from caption_jax.errors import MissingFileError, WorkdirError
from caption_jax.parameters.stored_dtypes import FLOAT32, find_stored_dtype
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import Weights, read_safetensors, sha256_of_file, to_safetensors
from caption_jax.runs.workdir import read_description, write_description
from input_pipeline.files import write_atomically

MANIFEST, POINTER = "manifest.json", "best_model.json"
WEIGHTS, CARD = "model.safetensors", "README.md"
MODEL_FORMAT, EXPORT_FORMAT, _VERSION = "caption-jax model", "caption-jax export", 1
_SMALL_WEIGHTS_VERSION = 2  # of exported folders whose weights are stored in bfloat16 or int8
_FORMATS = ((MODEL_FORMAT, _VERSION), (EXPORT_FORMAT, _VERSION), (EXPORT_FORMAT, _SMALL_WEIGHTS_VERSION))
_NAME = re.compile(r"model-(\d+)")
_REMEDY = (
    "restore the folder from an intact copy, or load the last checkpoint of the run with which='last' "
    "(--checkpoint=last on the command line)"
)
_EXPORT_REMEDY = "restore the folder from an intact copy, or export the run again (caption-jax export --to=folder)"


@dataclass(frozen=True)
class Pointer:
    """Reference to the best model of a workdir.

    Attributes:
        folder: name of the artifact, relative to the workdir.
        manifest: SHA-256 of the artifact's manifest.
    """

    folder: str
    manifest: str


def artifact_folder(workdir: epath.Path, step: int) -> epath.Path:
    """Returns the path of the artifact of a step."""
    return workdir / f"model-{step}"


def artifact_steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of all artifacts in a workdir, including incomplete ones, in ascending order."""
    if not workdir.exists():
        return []
    return sorted(int(match[1]) for path in workdir.iterdir() if (match := _NAME.fullmatch(path.name)))


def pointer_step(pointer: Pointer) -> int:
    """Returns the step in the folder name of a pointer."""
    return int(_NAME.fullmatch(pointer.folder)[1])


def write_artifact(workdir: epath.Path, description: RunDescription, weights: Weights) -> Pointer:
    """Writes an artifact. Replaces an incomplete artifact of the same step, which a killed run may have left.

    Args:
        workdir: workdir of the run.
        description: description of the run.
        weights: weights as NumPy arrays.

    Returns:
        A pointer to the artifact, for `write_pointer`.
    """
    folder = artifact_folder(workdir, weights.step)
    if folder.exists():
        folder.rmtree()
    write_description(folder, description)
    return Pointer(folder.name, write_weights(folder, weights, MODEL_FORMAT))


def write_weights(folder: epath.Path, weights: Weights, file_format: str) -> str:
    """Writes the weights to a folder that has a description, and last the manifest of all its files.

    Args:
        folder: the folder. A model card in it is not part of the manifest, because people edit it.
        weights: weights as NumPy arrays.
        file_format: `MODEL_FORMAT` or `EXPORT_FORMAT`.

    Returns:
        The SHA-256 of the manifest.
    """
    names = [name for name in relative_paths(folder) if name != CARD]
    files = {name: _make_manifest_entry((folder / name).read_bytes()) for name in names}
    content = to_safetensors(weights.variables)
    write_atomically(folder / WEIGHTS, content)
    files[WEIGHTS] = _make_manifest_entry(content)
    version = _VERSION if find_stored_dtype(weights.variables) == FLOAT32 else _SMALL_WEIGHTS_VERSION
    header = {"format": file_format, "version": version, "step": weights.step}
    manifest = json.dumps({**header, "files": files}, indent=2).encode()
    write_atomically(folder / MANIFEST, manifest)
    return hashlib.sha256(manifest).hexdigest()


def read_artifact(folder: epath.Path, manifest_hash: str | None = None) -> tuple[RunDescription, Weights]:
    """Reads an artifact and verifies the size and SHA-256 of its files.

    Args:
        folder: path of the artifact, which may have been moved.
        manifest_hash: expected SHA-256 of the manifest.

    Returns:
        The run description, and the weights as NumPy arrays.

    Raises:
        MissingFileError: a file is missing.
        WorkdirError: a file is corrupted, or a newer release wrote the artifact.
    """
    manifest = _read_manifest(folder, manifest_hash)
    _verify_description(folder, manifest)
    file = folder / WEIGHTS
    if _file_size(file) != manifest["files"][WEIGHTS]["bytes"]:
        raise _corrupted_error(file)
    try:
        variables, digest = read_safetensors(file)
    except SafetensorError as error:
        raise _corrupted_error(file) from error
    if digest != manifest["files"][WEIGHTS]["sha256"]:
        raise _corrupted_error(file)
    return read_description(folder), Weights(variables, manifest["step"])


def verify_artifact(folder: epath.Path) -> None:
    """Verifies the size and SHA-256 of the files of an artifact; see `read_artifact` for the errors."""
    manifest = _read_manifest(folder, None)
    _verify_description(folder, manifest)
    entry, file = manifest["files"][WEIGHTS], folder / WEIGHTS
    if _file_size(file) != entry["bytes"] or sha256_of_file(file) != entry["sha256"]:
        raise _corrupted_error(file)


def _verify_description(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Verifies all files except the weights, which are the largest."""
    for name, entry in manifest["files"].items():
        if name != WEIGHTS and _make_manifest_entry(_read_bytes(folder / name)) != entry:
            raise _corrupted_error(folder / name)


def pointer_to(folder: epath.Path) -> Pointer:
    """Returns a pointer to a complete artifact."""
    return Pointer(folder.name, hashlib.sha256(_read_bytes(folder / MANIFEST)).hexdigest())


def write_pointer(workdir: epath.Path, pointer: Pointer) -> None:
    """Atomically makes a complete artifact the best model of its workdir."""
    content = {"folder": pointer.folder, "manifest_sha256": pointer.manifest}
    write_atomically(workdir / POINTER, json.dumps(content, indent=2) + "\n")


def read_pointer(workdir: epath.Path) -> Pointer | None:
    """Reads the pointer to the best model of a workdir; returns None if there is no pointer.

    Raises:
        WorkdirError: the pointer file is damaged.
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
        raise WorkdirError(
            f"{file} names {pointer.folder!r}, not a model-<step> folder: delete it to read {workdir}/checkpoints"
        )
    return pointer


def check_no_model(workdir: epath.Path) -> None:
    """Raises WorkdirError if training from scratch would replace the model of another run."""
    pointer = read_pointer(workdir)
    if pointer is not None:
        raise WorkdirError(
            f"{workdir} holds {pointer.folder}, the best model of a run, but no checkpoint to resume from: train in "
            f"another workdir (with --config.init_from={workdir} to start from this model), or delete "
            f"{workdir / POINTER}"
        )


def _read_manifest(folder: epath.Path, expected: str | None) -> dict[str, Any]:
    file = folder / MANIFEST
    content = _read_bytes(file)
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise _corrupted_error(file)
    try:
        manifest = json.loads(content)
        file_format = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupted_error(file) from error
    if file_format not in _FORMATS:
        name, version = file_format
        raise WorkdirError(
            f"{file} has format {name!r}, version {version}; this release reads {MODEL_FORMAT!r} version {_VERSION} "
            f"and {EXPORT_FORMAT!r} up to version {_SMALL_WEIGHTS_VERSION}: use the release that wrote it"
        )
    if not _is_valid(manifest):
        raise _corrupted_error(file)
    return manifest


def _is_valid(manifest: dict[str, Any]) -> bool:
    """Returns whether a manifest has the expected structure, and names only files in its own folder."""
    files, step = manifest.get("files"), manifest.get("step")
    if not isinstance(files, dict) or type(step) is not int or step < 0 or WEIGHTS not in files:
        return False
    return all(
        isinstance(entry, dict)
        and {"bytes", "sha256"} <= entry.keys()
        and ".." not in name.split("/")
        and name[0] != "/"
        for name, entry in files.items()
        if name
    )


def relative_paths(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yields the relative paths of all files under a folder."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from relative_paths(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def _make_manifest_entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_bytes(file: epath.Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise _missing_error(file) from error


def _file_size(file: epath.Path) -> int:
    try:
        return file.stat().length
    except FileNotFoundError as error:
        raise _missing_error(file) from error


def _missing_error(file: epath.Path) -> MissingFileError:
    return MissingFileError(f"{file} is missing, so the model cannot be loaded: {_find_remedy(file)}")


def _corrupted_error(file: epath.Path) -> WorkdirError:
    return WorkdirError(
        f"{file} is corrupted (its size or SHA-256 differs from the recorded one): {_find_remedy(file)}"
    )


def _find_remedy(file: epath.Path) -> str:
    """Returns what to do about a damaged file. Exported folders, which have a model card, have no checkpoints."""
    is_exported = any((folder / CARD).exists() for folder in (file.parent, file.parent.parent))
    return _EXPORT_REMEDY if is_exported else _REMEDY
