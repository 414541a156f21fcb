"""Brings an index up to date with images: what is new or changed is read, nothing else."""

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
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.prefetch import prefetch_to_device
from input_pipeline.records import Record

CAPTIONS = ("generated", "none")
MISSING = ("keep", "drop")
_CHUNK = 256  # images that are added together: what a killed run loses at most


class Embedder(Protocol):
    """What an index is made with; a `caption_jax.Captioner` is one."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "images dimension"]:
        """Unit vectors of images."""

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Captions of images."""


@dataclasses.dataclass
class Changes:
    """What an update did, in images.

    Attributes:
        added: not in the index before.
        renewed: in it, but their files had changed; those among them that cannot be read now are out.
        unchanged: named, and left as they were.
        missing: paths in the index that lead to no file.
        failures: images that cannot be read.
    """

    added: int = 0
    renewed: int = 0
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
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_error: Callable[[ImageError], None] = lambda error: None,
) -> Changes:
    """Adds images that are not in the index, and those anew whose size or time of change is another than it was.

    Changed images leave the index before the first of them is read, so an update that is killed leaves them out, and
    the next one adds them. Images in the index that are not named stay.

    Args:
        index: opened with `writing`.
        images: files or images of a data set; of several with the same path or id the first counts.
        embedder: the model that the index is of.
        preprocessing: the model's own.
        captions: "generated" by the model, or "none", which is several times faster.
        missing: "keep" or "drop" images whose files are gone.
        progress: called now and then with how many of how many images are done.
        on_error: called with each image that cannot be read, at once; the rest goes on.
    """
    for name, value, choices in (("captions", captions, CAPTIONS), ("missing", missing, MISSING)):
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    wanted, stale, changes = _compare(index, images)
    if missing == "drop":
        gone = set(changes.missing)
        stale |= {row for row, entry in enumerate(index.entries()) if entry.path in gone}
    if stale:
        kept = np.ones(len(index), bool)
        kept[list(stale)] = False
        index.keep(kept)
    # Read while the chunk before is embedded.
    with prefetch_to_device(read_chunks(wanted, preprocessing), size=1) as chunks:
        for number, (entries, pixels, errors, renewed) in enumerate(chunks, 1):
            for error in errors:
                on_error(error)
            if entries:
                index.append(embedder.embed_images(pixels), _with_captions(entries, pixels, embedder, captions))
            changes.failures += errors
            changes.renewed += renewed
            changes.added += len(entries) - renewed
            progress(min(number * _CHUNK, len(wanted)), len(wanted))
    return changes


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An image to be read; `renews` when the index had it before."""

    record: Record
    entry: Entry
    renews: bool


def _compare(index: ImageIndex, images: Iterable[Record]) -> tuple[list[Wanted], set[int], Changes]:
    """The images to read, the rows that no longer hold, and what is unchanged or missing."""
    known = {entry.key: (row, entry.stamp) for row, entry in enumerate(index.entries())}
    wanted, stale, seen, changes = [], set(), set(), Changes()
    for record in images:
        entry = describe(record)
        if entry.key in seen:
            continue
        seen.add(entry.key)
        row, stamp = known.get(entry.key, (None, None))
        if row is None:
            wanted.append(Wanted(record, entry, False))
        elif entry.stamp == stamp:
            changes.unchanged += 1
        elif entry.size is not None:  # a file that is there, and another than it was
            wanted.append(Wanted(record, entry, True))
            stale.add(row)
    changes.missing = [key for key, (_, stamp) in known.items() if stamp[0] is not None and not os.path.exists(key)]
    return wanted, stale, changes


def describe(record: Record) -> Entry:
    """What an index would know of an image now, but for a caption."""
    if not isinstance(record.image, Path):
        return Entry(record.image_id)
    path = os.path.abspath(record.image)
    try:
        status = os.stat(path)
    except OSError:  # reading it will say why
        return Entry(record.image_id, path)
    return Entry(record.image_id, path, None, status.st_size, status.st_mtime_ns)


def read_chunks(
    wanted: Sequence[Wanted], preprocessing: Preprocessing
) -> Iterator[tuple[list[Entry], list[UInt8[np.ndarray, "size size 3"]], list[ImageError], int]]:
    """Yields chunks: entries, their pixels, errors in place of others, and how many of the entries renew one."""

    def load(item: Wanted) -> np.ndarray | ImageError:
        try:
            return preprocessing.load(item.record.source(), name=item.record.name)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            loaded = list(pool.map(load, chunk))
            sound = [not isinstance(image, ImageError) for image in loaded]
            items = list(itertools.compress(chunk, sound))
            errors = [image for image in loaded if isinstance(image, ImageError)]
            pixels = list(itertools.compress(loaded, sound))
            yield [item.entry for item in items], pixels, errors, sum(item.renews for item in items)


def _with_captions(
    entries: list[Entry], pixels: Sequence[np.ndarray], embedder: Embedder, captions: str
) -> list[Entry]:
    if captions == "none":
        return entries
    texts = (caption.text for caption in embedder.caption(pixels))
    return [dataclasses.replace(entry, caption=text) for entry, text in zip(entries, texts, strict=True)]
