"""Incremental updates of an index: only new and changed images are read."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from caption_jax.errors import ConfigError
from caption_jax.inference.captioner import Caption
from caption_jax.retrieval.index import Entry, ImageIndex
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
    # Each chunk is read while the previous one is embedded.
    chunks = read_chunks(pending, preprocessing)
    with prefetch_to_device(chunks, size=1) as prefetched, display.phase("indexing", len(pending), "images") as phase:
        for entries, pixels, errors, updated in prefetched:
            for error in errors:
                on_error(error)
            if entries:
                index.append(embedder.embed_images(pixels), _add_captions(entries, pixels, embedder, captions))
            changes.failures += errors
            changes.updated += updated
            changes.added += len(entries) - updated
            phase.advance(len(entries) + len(errors))
    return changes


@dataclasses.dataclass(frozen=True)
class PendingImage:
    """An image to be read; `is_update` is true if the image is already in the index."""

    record: Record
    entry: Entry
    is_update: bool


def _compare(index: ImageIndex, images: Iterable[Record]) -> tuple[list[PendingImage], set[int], Changes]:
    """Returns the images to read, the stale rows, and a `Changes` with only `unchanged` and `missing` filled in."""
    indexed = {entry.key: (row, entry.stamp) for row, entry in enumerate(index.entries())}
    pending, stale, keys, changes = [], set(), set(), Changes()
    for record in images:
        entry = make_entry(record)
        if entry.key in keys:
            continue
        keys.add(entry.key)
        row, stamp = indexed.get(entry.key, (None, None))
        if row is None:
            pending.append(PendingImage(record, entry, False))
        elif entry.stamp == stamp:
            changes.unchanged += 1
        elif entry.size is not None:  # the file exists and has changed
            pending.append(PendingImage(record, entry, True))
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


def read_chunks(
    pending: Sequence[PendingImage], preprocessing: Preprocessing
) -> Iterator[tuple[list[Entry], list[UInt8[np.ndarray, "size size 3"]], list[ImageError], int]]:
    """Yields, per chunk: entries and pixels of readable images, errors of unreadable ones, and number of updates."""

    def load(item: PendingImage) -> np.ndarray | ImageError:
        try:
            return preprocessing.load(item.record.source(), name=item.record.name)
        except ImageError as error:
            return error
        except OSError as error:  # of a dataset that is not stored as image files
            return ImageError(item.record.name, str(error))

    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(pending), _CHUNK):
            chunk = pending[start : start + _CHUNK]
            loaded = list(pool.map(load, chunk))
            is_readable = [not isinstance(image, ImageError) for image in loaded]
            items = list(itertools.compress(chunk, is_readable))
            errors = [image for image in loaded if isinstance(image, ImageError)]
            pixels = list(itertools.compress(loaded, is_readable))
            yield [item.entry for item in items], pixels, errors, sum(item.is_update for item in items)


def _add_captions(entries: list[Entry], pixels: Sequence[np.ndarray], embedder: Embedder, captions: str) -> list[Entry]:
    if captions == "none":
        return entries
    texts = (caption.text for caption in embedder.caption(pixels))
    return [dataclasses.replace(entry, caption=text) for entry, text in zip(entries, texts, strict=True)]
