"""The nearest images of an index for each image of a split, stored beside the index; docs/context.md has the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from caption_jax.errors import MissingFileError
from caption_jax.files import json_line
from caption_jax.retrieval.index import Entry, ImageIndex
from caption_jax.retrieval.index_builder import Embedder, Wanted, describe, read_chunks
from caption_jax.retrieval.search import Searcher
from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.records import DataError, Record

VERSION = 1
SAME = 0.9999  # an image as close as this shows the same pixels, whatever its name: its captions are the image's own
_FORMAT = "caption-jax neighbours"
_SPARE = 4  # images asked for beyond those wanted, of which some are the image itself

ImageId = str | int


@dataclasses.dataclass(frozen=True)
class Near:
    """The images nearest to one image, nearest first; none where the image cannot be read.

    Attributes:
        id: of the image.
        neighbours: ids of the others.
        scores: cosines of the angles between their vectors and the image's.
    """

    id: ImageId
    neighbours: list[ImageId]
    scores: list[float]


def find_neighbours(
    index: ImageIndex,
    images: Sequence[Record],
    embedder: Embedder,
    preprocessing: Preprocessing,
    count: int,
    on_error: Callable[[ImageError], None] = lambda error: None,
) -> list[Near]:
    """Finds the `count` nearest images of an index for each image, fewer where it holds no more.

    An image is never its own neighbour: neither an entry with its id or its file nor one whose vector is the same
    (`SAME`), a copy under another name, is taken.

    Args:
        index: made by the embedder's model.
        images: whose neighbours are wanted. Those that are in the index, in files unchanged since, are not read.
        embedder: the model.
        preprocessing: the model's own.
        count: neighbours of an image.
        on_error: called with each image that cannot be read, at once.
    """
    entries, vectors = list(index.entries()), index.vectors
    searcher, rows = Searcher(vectors), {entry.key: row for row, entry in enumerate(entries)}
    wanted = [describe(record) for record in images]
    found: dict[ImageId, Near] = {}

    def search(queries: Sequence[Entry], of_queries: Float32[np.ndarray, "queries dimension"]) -> None:
        for query, near in zip(queries, _nearest(searcher, entries, queries, of_queries, count), strict=True):
            found[query.id] = near

    there = [entry for entry in wanted if entry.key in rows and entries[rows[entry.key]].stamp == entry.stamp]
    search(there, vectors[[rows[entry.key] for entry in there]])
    missing = [
        Wanted(record, entry, False) for record, entry in zip(images, wanted, strict=True) if entry.id not in found
    ]
    for queries, pixels, errors, _ in read_chunks(missing, preprocessing):
        for error in errors:
            on_error(error)
        search(queries, embedder.embed_images(pixels))
    return [found.get(entry.id, Near(entry.id, [], [])) for entry in wanted]


def _nearest(
    searcher: Searcher,
    entries: Sequence[Entry],
    queries: Sequence[Entry],
    vectors: Float32[np.ndarray, "queries dimension"],
    count: int,
) -> Iterable[Near]:
    """Yields the nearest of each query, without itself."""
    asked = count + _SPARE
    scores, rows = searcher.search(vectors, asked)
    for query, vector, its_scores, its_rows in zip(queries, vectors, scores, rows, strict=True):
        near = _without_itself(query, its_scores, [entries[row] for row in its_rows])
        more = asked
        while len(near) < count and more < len(entries):  # more copies of itself than were expected
            more *= 4
            its_scores, its_rows = (array[0] for array in searcher.search(vector[None], more))
            near = _without_itself(query, its_scores, [entries[row] for row in its_rows])
        yield Near(query.id, [entry.id for entry, _ in near[:count]], [round(score, 6) for _, score in near[:count]])


def _without_itself(query: Entry, scores: Iterable[float], found: Sequence[Entry]) -> list[tuple[Entry, float]]:
    return [
        (entry, float(score))
        for entry, score in zip(found, scores, strict=True)
        if entry.id != query.id and entry.key != query.key and score < SAME
    ]


def write_neighbours(index: ImageIndex, split: str, count: int, found: Sequence[Near]) -> Path:
    """Stores neighbours beside the index, in place of those that are there; returns the file."""
    header = {"format": _FORMAT, "version": VERSION, "split": split, "images": len(found), "neighbours": count}
    lines = [header | {"index": _state(index)}, *map(dataclasses.asdict, found)]
    path = _path(index.folder, split)
    write_atomically(path, "".join(json_line(line) + "\n" for line in lines))
    return path


def read_neighbours(folder: str | Path, split: str, at_least: int = 0) -> dict[ImageId, list[ImageId]]:
    """Image id -> ids of its neighbours, nearest first, as `write_neighbours` stored them.

    Args:
        folder: of the index.
        split: whose images they are neighbours of.
        at_least: so many have to have been asked for, an image.

    Raises:
        MissingFileError: there is no index, or nothing stored for the split.
        DataError: the index is another one now, or too few were asked for.
    """
    index, path = ImageIndex(folder), _path(Path(folder), split)
    remedy = f"run --mode=neighbours --index={folder} --split={split}, with --workdir of the run that the index is of"
    try:
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: {remedy}") from None
    header = json.loads(first)
    if (header.get("format"), header.get("version")) != (_FORMAT, VERSION):
        raise DataError(f"{path} is not of the format {_FORMAT!r}, version {VERSION}: {remedy}")
    if header["index"] != _state(index):
        raise DataError(f"{path} is of the index as it was, {header['index']}; now it is {_state(index)}: {remedy}")
    if header["neighbours"] < at_least:
        raise DataError(f"{path} holds {header['neighbours']} neighbours an image of {at_least} wanted: {remedy}")
    return {line["id"]: line["neighbours"] for line in map(json.loads, lines)}


def _path(folder: Path, split: str) -> Path:
    return folder / f"neighbours-{split}.jsonl"


def _state(index: ImageIndex) -> dict[str, Any]:
    """What changes when an index does."""
    return {"count": len(index), "generation": index.generation, "model": dataclasses.asdict(index.model)}
