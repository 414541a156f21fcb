"""Builds a search index from the Parquet files of a bulk run, without reading the images again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from caption_jax.bulk.output_folder import read_manifest
from caption_jax.bulk.parts import list_parts, read_rows
from caption_jax.errors import WorkdirError
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import Changes
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.files import is_on_bucket

_COLUMNS = ("source", "key", "caption", "vector", "size", "mtime_ns")


def index_parts(
    folder: str, index_folder: Path, model: ModelIdentity, display: Display = SILENT
) -> tuple[int, Changes]:
    """Adds the images of a bulk run to an index, and replaces those whose files had changed.

    An image in a shard is identified by the path of the shard and the name of the image in it.

    Args:
        folder: output folder of the run, with vectors.
        index_folder: folder of the index; created if it does not exist.
        model: the model of the command.
        display: shows the progress.

    Returns:
        The number of images of the index, and the changes. Images with an error are not counted.

    Raises:
        WorkdirError: the run is not complete, has no vectors or has those of another model, or the index was built with
            another model.
        LockedError: another process is writing to the index.
    """
    manifest, numbers = read_manifest(folder), list_parts(folder)
    if manifest.model != model:
        raise WorkdirError(
            f"{folder} was written with a model ({manifest.model}) other than the current one ({model}): use the "
            "--workdir and --checkpoint it was written with"
        )
    if not manifest.settings["--vectors"]:
        raise WorkdirError(f"{folder} has no vectors: write them with caption-many --vectors to another folder")
    if len(numbers) < len(manifest.units):
        missing = len(manifest.units) - len(numbers)
        raise WorkdirError(f"{folder} lacks {missing:,} Parquet files: run the command that writes it again")
    first = next((row for number in numbers for row in _read_images(folder, number)), None)
    if first is None:
        raise WorkdirError(f"{folder} has no image without an error: see its column `error`")
    with open_for_writing(index_folder, len(first["vector"]), manifest.model) as index:
        changes = _update(index, folder, numbers, display)
        return len(index), changes


def _update(index: ImageIndex, folder: str, numbers: list[int], display: Display) -> Changes:
    indexed = {entry.key: (row, entry.stamp) for row, entry in enumerate(index.entries())}
    changes, stale, current = Changes(), np.zeros(len(index), bool), set()
    for key, (row, stamp) in _find_indexed(folder, numbers, indexed).items():
        stale[row] = stamp != indexed[key][1]
        changes.updated += int(stale[row])
        if not stale[row]:
            current.add(key)
    changes.unchanged = len(current)
    if stale.any():
        index.drop(stale)
    with display.phase("indexing", len(numbers), "parts") as phase:
        for number in numbers:
            entries, vectors = [], []
            for row in _read_images(folder, number):
                entry = _make_entry(row)
                if entry.key not in current:
                    current.add(entry.key)
                    entries.append(entry)
                    vectors.append(row["vector"])
            if entries:
                index.append(np.stack(vectors), entries)
            changes.added += len(entries)
            phase.advance()
    changes.added -= changes.updated
    return changes


def _find_indexed(folder: str, numbers: list[int], indexed: dict[Any, tuple]) -> dict[Any, tuple[int, tuple]]:
    """Returns the row in the index and the current stamp of the images that are already in the index."""
    if not indexed:
        return {}
    entries = (_make_entry(row) for number in numbers for row in _read_images(folder, number))
    return {entry.key: (indexed[entry.key][0], entry.stamp) for entry in entries if entry.key in indexed}


def _read_images(folder: str, number: int) -> Iterator[dict[str, Any]]:
    return (row for row in read_rows(folder, number, _COLUMNS) if row["vector"] is not None)


def _make_entry(row: dict[str, Any]) -> Entry:
    """Returns the entry of an image: an image file, or an image in a shard or on a bucket, which has no path."""
    source, key, caption = row["source"], row["key"], row["caption"]
    if key or is_on_bucket(source):
        return Entry(f"{source}/{key}" if key else source, None, caption)
    return Entry(source, source, caption, row["size"], row["mtime_ns"])
