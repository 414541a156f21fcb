"""A compact record of the data of a run, with which a resumed run detects that the data changed.

`data_manifest.npz` in the workdir has a few arrays per split, with one element per image in the order of the split: the
ids, the sizes of the image files, and hashes of the captions and of the file names without folders. The contents of up
to 64 images per split are hashed, too. Modification times and the location of the data are not recorded, so the data
may be moved or copied.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int64, UInt64

from caption_jax.errors import DataError, WorkdirError
from input_pipeline.files import write_atomically
from input_pipeline.records import Record, Split
from input_pipeline.safe_open import read_file
from input_pipeline.terminal_text import escape

FILE_NAME = "data_manifest.npz"

_HASHED_IMAGES = 64  # images of a split whose contents are hashed
_MAX_HASHED_BYTES = 2**28  # larger files are not hashed
_UNKNOWN = 0  # hash of contents that were not read
_NO_FILE = -1  # size of an image that is not a file, or cannot be read
_MAX_NAMED = 3
_STAT_THREADS = 16  # a network file system answers several requests at the same time
_STAT_CHUNK = 4096

ImageId = str | int


@dataclass(frozen=True, eq=False)
class SplitManifest:
    """The images of one split.

    Attributes:
        ids: id of each image.
        captions: hash of the captions of each image.
        names: hash of the file name of each image.
        sizes: size of the file of each image in bytes, or -1.
        contents: hash of the contents of each image, or 0.
    """

    ids: Sequence[ImageId]
    captions: UInt64[np.ndarray, " images"]
    names: UInt64[np.ndarray, " images"]
    sizes: Int64[np.ndarray, " images"]
    contents: UInt64[np.ndarray, " images"]


Manifest = Mapping[str, SplitManifest]  # by the name of the split


def make_manifest(splits: Mapping[str, Split]) -> dict[str, SplitManifest]:
    """Records the data of a run. Reads the size of each image file, and the contents of a few."""
    return {name: _describe_split(split) for name, split in splits.items()}


def write_manifest(workdir: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest to a workdir."""
    arrays = {}
    for split, entries in manifest.items():
        for field in fields(entries):
            value = getattr(entries, field.name)
            arrays[f"{split}/{field.name}"] = _encode_ids(value) if field.name == "ids" else value
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(workdir / FILE_NAME, buffer.getvalue())


def read_manifest(workdir: epath.Path) -> dict[str, SplitManifest] | None:
    """Reads the manifest of a workdir; None if an older release wrote the workdir.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        splits: dict[str, dict] = {}
        for name, array in arrays.items():
            split, _, field = name.rpartition("/")
            splits.setdefault(split, {})[field] = _decode_ids(array) if field == "ids" else array
        return {name: SplitManifest(**entries) for name, entries in splits.items()}
    except (ValueError, TypeError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}): delete it to resume the run without comparing its data with it"
        ) from error


def find_changes(old: Manifest, new: Manifest, splits: Iterable[str] = ("train", "val")) -> list[str]:
    """Compares the data of a run at its start and now.

    Args:
        old: the manifest of the run.
        new: the manifest of the current data.
        splits: splits to compare.

    Returns:
        One phrase per split and kind of change, with the ids of the first images, such as "train: the captions of 2
        images changed (a.jpg, b.jpg)"; [] if the data is the same.
    """
    changes = []
    for name in splits:
        if name in old and name in new:
            changes += [f"{name}: {change}" for change in _compare(old[name], new[name])]
        elif name in old or name in new:
            changes.append(f"the split {name} {'is missing' if name in old else 'is new'}")
    return changes


def check_data(
    workdir: epath.Path, splits: Mapping[str, Split], *, resumes: bool, allow_change: bool
) -> Manifest | None:
    """Checks that the data of a run that is resumed has not changed.

    Args:
        workdir: workdir of the run.
        splits: the current data.
        resumes: whether the run is resumed.
        allow_change: whether to log changes instead of raising an error.

    Returns:
        The manifest to write to the workdir; None if it has the right one.

    Raises:
        WorkdirError: the data changed, or the manifest is damaged.
    """
    manifest = make_manifest(splits)
    if not resumes:
        return manifest
    stored = read_manifest(workdir)
    if stored is None:
        logging.info("an older release started this run and did not record its data: changes since then are not found")
        return manifest
    changes = find_changes(stored, manifest)
    if not changes:
        return None
    description = "; ".join(changes)
    if not allow_change:
        raise WorkdirError(
            f"the data of the run in {workdir} has changed since it was started: {description}. Restore the data, "
            "train in another --workdir, or set --allow_data_change to continue this run with the current data"
        )
    logging.warning(
        "--allow_data_change: the data has changed: %s. The run continues with the current data: its end differs from "
        "that of an undisturbed run, and scores of changed validation images cannot be compared with earlier ones",
        description,
    )
    return manifest


def _compare(old: SplitManifest, new: SplitManifest) -> Iterator[str]:
    if old.ids == new.ids:
        rows = np.arange(len(old.ids))
        old_rows, new_rows = rows, rows
    else:
        old_index, new_index = ({image_id: row for row, image_id in enumerate(ids)} for ids in (old.ids, new.ids))
        missing = [image_id for image_id in old.ids if image_id not in new_index]
        added = [image_id for image_id in new.ids if image_id not in old_index]
        yield from _describe(missing, "is missing", "are missing")
        yield from _describe(added, "is new", "are new")
        common = [image_id for image_id in old.ids if image_id in new_index]
        if not missing and not added:
            yield "the order of the images changed"
        old_rows, new_rows = (np.array([index[key] for key in common], int) for index in (old_index, new_index))
    ids = [old.ids[row] for row in old_rows]

    sizes = old.sizes[old_rows] != new.sizes[new_rows]
    before, now = old.contents[old_rows], new.contents[new_rows]
    contents = (before != now) & (before != _UNKNOWN) & (now != _UNKNOWN)
    kinds = {
        "has other captions|have other captions": old.captions[old_rows] != new.captions[new_rows],
        "was replaced (its size differs)|were replaced (their sizes differ)": sizes,
        "was replaced (its contents differ)|were replaced (their contents differ)": contents & ~sizes,
        "has another file name|have other file names": old.names[old_rows] != new.names[new_rows],
    }
    for phrases, mask in kinds.items():
        yield from _describe([ids[row] for row in np.flatnonzero(mask)], *phrases.split("|"))


def _describe(ids: Sequence[ImageId], singular: str, plural: str) -> Iterator[str]:
    if ids:
        names = [escape(str(image_id)) for image_id in ids[:_MAX_NAMED]] + ["..."] * (len(ids) > _MAX_NAMED)
        yield f"{len(ids):,} image{'s' * (len(ids) > 1)} {plural if len(ids) > 1 else singular}: {', '.join(names)}"


def _describe_split(split: Split) -> SplitManifest:
    paths = [record.image if isinstance(record.image, Path) else None for record in split]
    stride = max(len(split) // _HASHED_IMAGES, 1)
    contents = np.zeros(len(split), np.uint64)
    for row in range(0, len(split), stride):
        contents[row] = _hash_contents(split[row])
    return SplitManifest(
        split.image_ids,
        _hash_all("\n".join(record.captions) for record in split),
        _hash_all(_get_name(record) for record in split),
        _read_sizes(paths),
        contents,
    )


def _get_name(record: Record) -> str:
    return os.path.basename(record.image) if isinstance(record.image, Path) else ""


def _read_sizes(paths: Sequence[Path | None]) -> Int64[np.ndarray, " images"]:
    def read(chunk: Sequence[Path | None]) -> list[int]:
        return [_NO_FILE if path is None else _read_size(path) for path in chunk]

    chunks = [paths[start : start + _STAT_CHUNK] for start in range(0, len(paths), _STAT_CHUNK)]
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="sizes") as pool:
        results: Iterable[list[int]] = pool.map(read, chunks) if len(chunks) > 1 else map(read, chunks)
        return np.fromiter(itertools.chain.from_iterable(results), np.int64, len(paths))


def _read_size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # it counts as unreadable when it is read
        return _NO_FILE


def _hash_contents(record: Record) -> int:
    try:
        source = record.source()
        content = read_file(source, _MAX_HASHED_BYTES) if isinstance(source, Path) else source
    except (OSError, DataError):  # it is reported when it is read as an image
        return _UNKNOWN
    return _hash(content) or 1


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _hash_all(texts: Iterable[str]) -> UInt64[np.ndarray, " images"]:
    blake2b: Callable = hashlib.blake2b
    digests = b"".join(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def _encode_ids(ids: Sequence[ImageId]) -> np.ndarray:
    return np.frombuffer(zlib.compress(json.dumps(list(ids)).encode(), 1), np.uint8)


def _decode_ids(array: np.ndarray) -> list[ImageId]:
    return json.loads(zlib.decompress(array.tobytes()))
