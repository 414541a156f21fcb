"""Incremental updates of an index: only new and changed images are read."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from caption_jax.errors import ConfigError, DataError
from caption_jax.inference.captioner import Caption
from caption_jax.retrieval.index import Entry, ImageIndex
from caption_jax.runtime.divided_work import assist, divide
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.prefetch import prefetch_to_device
from input_pipeline.records import Record

CAPTIONS = ("generated", "none")
MISSING = ("keep", "drop")
_CHUNK = 64  # images per append; a killed process loses at most one chunk


class Embedder(Protocol):
    """A model that embeds and captions images, such as `caption_jax.Captioner`."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "images dimension"]:
        """Embeds images as unit vectors."""

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Captions images."""


@dataclasses.dataclass
class Changes:
    """Summary of an update.

    Attributes:
        added: number of new images.
        updated: number of indexed images whose files had changed. If a changed file cannot be read, its image is
            removed.
        unchanged: number of requested images that were already up to date.
        missing: indexed paths that no longer exist.
        failures: errors of images that could not be read.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    missing: list[str] = dataclasses.field(default_factory=list)
    failures: list[ImageError] = dataclasses.field(default_factory=list)


def update_index(
    index: ImageIndex,
    images: Iterable[Record],
    embedder: Embedder,
    preprocessing: Preprocessing,
    *,
    captions: str = "generated",
    missing: str = "keep",
    display: Display = SILENT,
    on_error: Callable[[ImageError], None] = lambda error: None,
) -> Changes:
    """Adds images that are not in the index, and re-indexes those whose file size or modification time has changed.

    Changed images are removed from the index before any of them is read. If the update is killed, they are missing from
    the index until the next update adds them. Indexed images that are not in `images` are unaffected.

    Args:
        index: an index opened with `open_for_writing`.
        images: image files, or images of a dataset; duplicates of a path or id are skipped.
        embedder: the model of the index.
        preprocessing: preprocessing of the model.
        captions: "generated" by the model, or "none", which is several times faster.
        missing: "keep" or "drop" images whose files no longer exist.
        display: shows the progress.
        on_error: called immediately for each image that cannot be read; the other images are still indexed.

    Raises:
        ConfigError: `captions` or `missing` is unknown.
    """
    for name, value, choices in (("captions", captions, CAPTIONS), ("missing", missing, MISSING)):
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    pending, stale, changes = _compare(index, images)
    if missing == "drop":
        missing_paths = set(changes.missing)
        stale |= {row for row, entry in enumerate(index.entries()) if entry.path in missing_paths}
    if stale:
        mask = np.zeros(len(index), bool)
        mask[list(stale)] = True
        index.drop(mask)
    chunks = embed_chunks(pending, embedder, preprocessing, captions)
    with contextlib.closing(chunks), display.phase("indexing", len(pending), "images") as phase:
        for chunk in chunks:
            for error in chunk.errors:
                on_error(error)
            if chunk.entries:
                index.append(chunk.vectors, chunk.entries)
            changes.failures += chunk.errors
            changes.updated += chunk.updated
            changes.added += len(chunk.entries) - chunk.updated
            phase.advance(len(chunk.entries) + len(chunk.errors))
    return changes


@dataclasses.dataclass(frozen=True)
class PendingImage:
    """An image to be read.

    Attributes:
        record: the image.
        entry: its entry in the index, without a caption.
        is_update: whether the image is already in the index.
        position: position of the record among all images of the command.
    """

    record: Record
    entry: Entry
    is_update: bool
    position: int


def _compare(index: ImageIndex, images: Iterable[Record]) -> tuple[list[PendingImage], set[int], Changes]:
    """Returns the images to read, the stale rows, and a `Changes` with only `unchanged` and `missing` filled in."""
    indexed = {entry.key: (row, entry.stamp) for row, entry in enumerate(index.entries())}
    pending, stale, keys, changes = [], set(), set(), Changes()
    for position, record in enumerate(images):
        entry = make_entry(record)
        if entry.key in keys:
            continue
        keys.add(entry.key)
        row, stamp = indexed.get(entry.key, (None, None))
        if row is None:
            pending.append(PendingImage(record, entry, False, position))
        elif entry.stamp == stamp:
            changes.unchanged += 1
        elif entry.size is not None:  # the file exists and has changed
            pending.append(PendingImage(record, entry, True, position))
            stale.add(row)
    changes.missing = [key for key, (_, stamp) in indexed.items() if stamp[0] is not None and not os.path.exists(key)]
    return pending, stale, changes


def make_entry(record: Record) -> Entry:
    """Creates the index entry of an image from the current state of its file, without a caption."""
    if not isinstance(record.image, Path):
        return Entry(record.image_id)
    path = os.path.abspath(record.image)
    try:
        status = os.stat(path)
    except OSError:  # reported when the file is read
        return Entry(record.image_id, path)
    return Entry(record.image_id, path, None, status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class EmbeddedChunk:
    """Images that were read and embedded together.

    Attributes:
        entries: entries of the readable images, with their captions.
        vectors: unit vectors of the readable images.
        errors: errors of the unreadable images.
        updated: number of readable images that are already in the index.
    """

    entries: list[Entry]
    vectors: Float32[np.ndarray, "images dimension"]
    errors: list[ImageError]
    updated: int


def embed_chunks(
    pending: Sequence[PendingImage], embedder: Embedder, preprocessing: Preprocessing, captions: str = "none"
) -> Iterator[EmbeddedChunk]:
    """Reads, embeds and captions images in chunks. If there are several processes, they divide the chunks among them.

    Called by process 0; the others call `assist_embedding` meanwhile.
    """
    chunks = [pending[start : start + _CHUNK] for start in range(0, len(pending), _CHUNK)]
    if jax.process_count() == 1:
        # Each chunk is read while the previous one is embedded.
        with ThreadPoolExecutor(max_workers=4) as pool:
            loaded = (_load([item.record for item in chunk], preprocessing, pool) for chunk in chunks)
            with prefetch_to_device(loaded, size=1) as prefetched:
                for chunk, images in zip(chunks, prefetched, strict=True):
                    yield _make_chunk(chunk, _embed(images, embedder, captions))
        return
    items = [[(item.position, item.record.image_id) for item in chunk] for chunk in chunks]
    records = {item.position: item.record for item in pending}
    results = divide(items, functools.partial(_embed_part, records, embedder, preprocessing, captions))
    for chunk, result in zip(chunks, results, strict=True):
        yield _make_chunk(chunk, result)


def assist_embedding(
    images: Sequence[Record], embedder: Embedder, preprocessing: Preprocessing, captions: str = "none"
) -> None:
    """Embeds the images that process 0 divides in `embed_chunks`.

    Raises:
        DataError: the images of this process are others.
    """
    records = dict(enumerate(images))
    assist(functools.partial(_embed_part, records, embedder, preprocessing, captions))


def _embed_part(
    records: Mapping[int, Record],
    embedder: Embedder,
    preprocessing: Preprocessing,
    captions: str,
    number: int,
    part: Sequence[tuple[int, str | int]],
) -> dict[str, Any]:
    for position, image_id in part:
        if position not in records or records[position].image_id != image_id:
            raise DataError(f"image {image_id} of process 0 is another here: use the same images on all hosts")
    with ThreadPoolExecutor(max_workers=4) as pool:
        images = _load([records[position] for position, _ in part], preprocessing, pool)
    return _embed(images, embedder, captions)


def _load(
    records: Sequence[Record], preprocessing: Preprocessing, pool: ThreadPoolExecutor
) -> list[UInt8[np.ndarray, "size size 3"] | ImageError]:
    def load(record: Record) -> np.ndarray | ImageError:
        try:
            return preprocessing.load(record.source(), name=record.name)
        except ImageError as error:
            return error
        except OSError as error:  # of a dataset that is not stored as image files
            return ImageError(record.name, str(error))

    return list(pool.map(load, records))


def _embed(images: Sequence[np.ndarray | ImageError], embedder: Embedder, captions: str) -> dict[str, Any]:
    """Returns the vectors and captions of the readable images, and the errors by position, in JSON."""
    pixels = [image for image in images if not isinstance(image, ImageError)]
    errors = {str(n): [error.name, error.reason] for n, error in enumerate(images) if isinstance(error, ImageError)}
    result: dict[str, Any] = {"errors": errors}
    if pixels:
        vectors = np.asarray(embedder.embed_images(pixels), np.float32)
        result |= {"shape": vectors.shape, "vectors": base64.b64encode(vectors.tobytes()).decode()}
        if captions != "none":
            result["captions"] = [caption.text for caption in embedder.caption(pixels)]
    return result


def _make_chunk(chunk: Sequence[PendingImage], result: Mapping[str, Any]) -> EmbeddedChunk:
    errors = {int(position): ImageError(*error) for position, error in result["errors"].items()}
    items = [item for position, item in enumerate(chunk) if position not in errors]
    captions = result.get("captions", [item.entry.caption for item in items])
    entries = [dataclasses.replace(item.entry, caption=caption) for item, caption in zip(items, captions, strict=True)]
    vectors = np.frombuffer(base64.b64decode(result.get("vectors", "")), np.float32)
    vectors = vectors.reshape(result.get("shape", (0, 0)))
    return EmbeddedChunk(entries, vectors, list(errors.values()), sum(item.is_update for item in items))
