"""Checksums of the files of a checkpoint, and the reasons why a checkpoint cannot be used.

`checksums.json` in the folder of a checkpoint lists the size and the SHA-256 of each file, or in a bucket the CRC32C
that the bucket computes itself. It is written by the background thread that writes the checkpoint, immediately before
the commit, so every committed checkpoint of this release has one. Checkpoints without it, from older releases or other
tools, are only checked for missing and unreadable metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from caption_jax.errors import WorkdirError
from caption_jax.runs.artifact import relative_paths
from input_pipeline.files import is_on_bucket, write_atomically

CHECKSUMS = "checksums.json"
_VERSION = 1
# Orbax writes these two files after the checksums: the time of the commit and the mark of a complete checkpoint.
_STEP_METADATA = "_CHECKPOINT_METADATA"
_WRITTEN_LATER = {CHECKSUMS, _STEP_METADATA, "commit_success.txt"}
_ITEM_METADATA = {"records": "metadata"}  # JSON file in the folder of an item; `_METADATA` in those of arrays
_HASHING_THREADS = 4
_MAX_NAMED = 3


def write_checksums(folder: epath.Path) -> None:
    """Writes the checksums of all files of a checkpoint that is about to be committed.

    Raises:
        OSError: a file cannot be read, or the checksums cannot be written.
    """
    content = {"version": _VERSION, "files": _describe_files(folder)}
    write_atomically(folder / CHECKSUMS, json.dumps(content, indent=1) + "\n")


def find_damage(folder: epath.Path, items: Collection[str]) -> str:
    """Checks some items of a checkpoint, such as `("weights",)`.

    Returns:
        The damage in a few words, with the names of the first files; "" if there is none.

    Raises:
        WorkdirError: this user may not read a file, which does not mean that it is damaged.
    """
    try:
        problems = _check_metadata(folder, items) or _compare_files(folder, items)
    except PermissionError as error:
        raise WorkdirError(
            f"the checkpoint {folder} cannot be read ({error.strerror}: {error.filename}): change its permissions"
        ) from error
    more = f" and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
    return ", ".join(problems[:_MAX_NAMED]) + more


def _check_metadata(folder: epath.Path, items: Collection[str]) -> list[str]:
    """Returns the metadata files that are missing or not valid JSON."""
    names = [f"{item}/{_ITEM_METADATA.get(item, '_METADATA')}" for item in items]
    if (folder / _STEP_METADATA).exists():  # which old releases of Orbax did not write
        names.append(_STEP_METADATA)
    problems = []
    for name in names:
        try:
            if not isinstance(json.loads((folder / name).read_bytes()), dict):
                problems.append(f"{name} is not a JSON object")
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"{name} is missing")
        except PermissionError:
            raise
        except (OSError, ValueError, RecursionError):
            problems.append(f"{name} is not readable JSON")
    return problems


def _compare_files(folder: epath.Path, items: Collection[str]) -> list[str]:
    """Compares the files of the items with their checksums. Files without a checksum are not checked."""
    if not (folder / CHECKSUMS).exists():
        return []
    try:
        files = json.loads((folder / CHECKSUMS).read_bytes())["files"]
        expected = {name: dict(entry) for name, entry in files.items() if name.partition("/")[0] in items}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{CHECKSUMS} is not readable"]
    actual = _describe_files(folder, expected)
    problems = []
    for name, entry in expected.items():
        if name not in actual:
            problems.append(f"{name} is missing")
        elif actual[name].get("bytes") != entry.get("bytes"):
            problems.append(f"{name} has {actual[name].get('bytes')} bytes instead of {entry.get('bytes')}")
        elif any(actual[name][key] != entry[key] for key in actual[name].keys() & entry.keys()):
            problems.append(f"the contents of {name} have changed")
    return problems


def _describe_files(folder: epath.Path, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Returns the size and the checksum of files by relative path; without `names`, of all files of the checkpoint."""
    if is_on_bucket(folder):
        return {name: entry for name, entry in _describe_objects(folder).items() if names is None or name in names}
    if names is None:
        names = [name for name in relative_paths(folder) if name not in _WRITTEN_LATER]
    paths = {name: folder / name for name in names}
    with ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="checksums") as pool:
        entries = pool.map(_describe_file, paths.values())
        return {name: entry for name, entry in zip(paths, entries, strict=True) if entry}


def _describe_file(path: epath.Path) -> dict[str, Any]:
    """Returns the size and the SHA-256 of a local file; {} if it does not exist, and only the type of an I/O error."""
    try:
        with open(path, "rb") as file:
            return {"bytes": path.stat().length, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except PermissionError:
        raise
    except OSError as error:  # a damaged disk
        return {"bytes": f"unreadable ({error.strerror})"}


def _describe_objects(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Returns the size of the objects of a checkpoint, and their CRC32C if the client reports it."""
    try:
        import fsspec

        scheme, _, root = str(folder).partition("://")
        objects = fsspec.filesystem(scheme).find(str(folder), detail=True)
    except (ImportError, ValueError):  # TensorFlow is the client
        names = [name for name in relative_paths(folder) if name not in _WRITTEN_LATER]
        return {name: {"bytes": (folder / name).stat().length} for name in names}
    entries = {path.lstrip("/").removeprefix(f"{root}/"): info for path, info in sorted(objects.items())}
    return {
        name: {"bytes": info["size"], **({"crc32c": info["crc32c"]} if "crc32c" in info else {})}
        for name, info in entries.items()
        if name not in _WRITTEN_LATER
    }
