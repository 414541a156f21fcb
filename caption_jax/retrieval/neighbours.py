"""Finds the indexed images nearest to each image of a split, and stores them with the index (docs/context.md)."""

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
from caption_jax.retrieval.index_builder import Embedder, PendingImage, embed_chunks, make_entry
from caption_jax.retrieval.index_format import is_image_id, is_number
from caption_jax.retrieval.search import Searcher
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.limits import DEFAULT_LIMITS
from input_pipeline.records import DataError, Record
from input_pipeline.safe_open import read_file

VERSION = 1
DUPLICATE_COSINE = 0.9999  # images at least this similar are duplicates, whose captions would leak the references
_FORMAT = "caption-jax neighbours"
_EXTRA_RESULTS = 4  # additional results to request, because the image itself and duplicates are excluded

ImageId = str | int


@dataclasses.dataclass(frozen=True)
class ImageNeighbours:
    """The nearest neighbours of an image in descending order of similarity; empty if the image cannot be read.

    Attributes:
        id: id of the image.
        neighbours: ids of the neighbours.
        scores: cosine similarities of the neighbours.
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
    display: Display = SILENT,
) -> list[ImageNeighbours]:
    """Finds the `count` nearest indexed images of each image, or fewer if the index is smaller.

    The image itself is excluded, as are entries with the same id or file, and duplicates under another name (a cosine
    similarity of at least `DUPLICATE_COSINE`).

    Args:
        index: an index built with the model of `embedder`.
        images: the query images. Indexed images with unchanged files are not read again.
        embedder: the model.
        preprocessing: preprocessing of the model.
        count: number of neighbours per image.
        on_error: called immediately for each image that cannot be read.
        display: shows the progress.
    """
    entries, vectors = list(index.entries()), index.vectors
    searcher, rows = Searcher(vectors), {entry.key: row for row, entry in enumerate(entries)}
    query_entries = [make_entry(record) for record in images]
    results: dict[ImageId, ImageNeighbours] = {}

    def search(queries: Sequence[Entry], query_vectors: Float32[np.ndarray, "queries dimension"]) -> None:
        for result in _find_nearest(searcher, entries, queries, query_vectors, count):
            results[result.id] = result

    indexed = [entry for entry in query_entries if entry.key in rows and entries[rows[entry.key]].stamp == entry.stamp]
    search(indexed, vectors[[rows[entry.key] for entry in indexed]])
    pending = [
        PendingImage(record, entry, False, position)
        for position, (record, entry) in enumerate(zip(images, query_entries, strict=True))
        if entry.id not in results
    ]
    with display.phase("finding neighbours", len(pending), "images") as phase:
        for chunk in embed_chunks(pending, embedder, preprocessing):
            for error in chunk.errors:
                on_error(error)
            if chunk.entries:
                search(chunk.entries, chunk.vectors)
            phase.advance(len(chunk.entries) + len(chunk.errors))
    return [results.get(entry.id, ImageNeighbours(entry.id, [], [])) for entry in query_entries]


def _find_nearest(
    searcher: Searcher,
    entries: Sequence[Entry],
    queries: Sequence[Entry],
    vectors: Float32[np.ndarray, "queries dimension"],
    count: int,
) -> Iterable[ImageNeighbours]:
    """Yields the neighbours of each query."""
    scores, rows = searcher.search(vectors, count + _EXTRA_RESULTS)
    for query, vector, query_scores, query_rows in zip(queries, vectors, scores, rows, strict=True):
        k = count + _EXTRA_RESULTS
        nearest = _exclude_query(query, query_scores, [entries[row] for row in query_rows])
        while len(nearest) < count and k < len(entries):  # the index has many duplicates of the query
            k *= 4
            query_scores, query_rows = (array[0] for array in searcher.search(vector[None], k))
            nearest = _exclude_query(query, query_scores, [entries[row] for row in query_rows])
        nearest = nearest[:count]
        yield ImageNeighbours(query.id, [entry.id for entry, _ in nearest], [round(score, 6) for _, score in nearest])


def _exclude_query(query: Entry, scores: Iterable[float], entries: Sequence[Entry]) -> list[tuple[Entry, float]]:
    """Returns the entries that are neither the query nor duplicates of it, with their scores."""
    return [
        (entry, float(score))
        for entry, score in zip(entries, scores, strict=True)
        if entry.id != query.id and entry.key != query.key and score < DUPLICATE_COSINE
    ]


def write_neighbours(index: ImageIndex, split: str, count: int, neighbours: Sequence[ImageNeighbours]) -> Path:
    """Writes the neighbours of a split to the folder of the index, replacing existing ones; returns the file path."""
    header = {"format": _FORMAT, "version": VERSION, "split": split, "images": len(neighbours), "neighbours": count}
    lines = [header | {"index": _get_state(index)}, *map(dataclasses.asdict, neighbours)]
    path = _get_path(index.folder, split)
    write_atomically(path, "".join(json_line(line) + "\n" for line in lines))
    return path


def read_neighbours(folder: str | Path, split: str, at_least: int = 0) -> dict[ImageId, list[ImageId]]:
    """Reads the neighbours of a split.

    Args:
        folder: folder of the index.
        split: name of the split.
        at_least: required number of neighbours per image.

    Returns:
        Image id -> ids of its neighbours in descending order of similarity.

    Raises:
        MissingFileError: the index does not exist, or no neighbours are stored for the split.
        DataError: the index has changed since the neighbours were stored, or too few are stored.
    """
    index, path = ImageIndex(folder), _get_path(Path(folder), split)
    remedy = f"run --mode=neighbours --index={folder} --split={split} with the --workdir of the index"
    try:
        lines = read_file(path, DEFAULT_LIMITS.caption_file_bytes).decode().removesuffix("\n").split("\n")
        header, *records = map(json.loads, lines)
    except MissingFileError:
        raise MissingFileError(f"{path} is missing: {remedy}") from None
    except (ValueError, RecursionError):  # also of `read_file`
        raise DataError(f"{path} is damaged: {remedy}") from None
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (_FORMAT, VERSION):
        raise DataError(f"{path} does not have format {_FORMAT!r}, version {VERSION}: {remedy}")
    if header.get("index") != _get_state(index):
        raise DataError(f"{path} is out of date (the index has changed since it was written): {remedy}")
    count = header.get("neighbours")
    if not is_number(count):
        raise DataError(f"{path} is damaged: {remedy}")
    if count < at_least:
        raise DataError(f"{path} has {count} neighbours per image, {at_least} are required: {remedy}")
    neighbours: dict[ImageId, list[ImageId]] = {}
    for number, record in enumerate(records, 2):
        if not _is_record(record):
            raise DataError(f"{path}, line {number}, is damaged: {remedy}")
        neighbours[record["id"]] = record["neighbours"]
    return neighbours


def _is_record(record: Any) -> bool:
    """Whether a JSON value is the neighbours of an image."""
    if not isinstance(record, dict) or not is_image_id(record.get("id")):
        return False
    neighbours = record.get("neighbours")
    return isinstance(neighbours, list) and all(map(is_image_id, neighbours))


def _get_path(folder: Path, split: str) -> Path:
    return folder / f"neighbours-{split}.jsonl"


def _get_state(index: ImageIndex) -> dict[str, Any]:
    """Returns values that identify the current contents of an index."""
    return {"count": len(index), "generation": index.generation, "model": dataclasses.asdict(index.model)}
