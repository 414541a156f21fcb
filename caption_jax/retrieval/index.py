"""On-disk image index: a unit vector and a JSON line per image. docs/search.md describes the files.

Data files are append-only, and an atomically replaced header records their valid length. The index remains consistent
if a process is killed at any time; the next writer truncates the files to the recorded length.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from caption_jax.errors import LockedError, WorkdirError
from caption_jax.files import json_line
from caption_jax.retrieval.entry_reader import EntryReader
from caption_jax.retrieval.index_format import Entry, Header, ModelIdentity, parse_entry, read_header, read_lines
from input_pipeline.files import write_atomically
from input_pipeline.safe_open import check_file

__all__ = ["Entry", "ImageIndex", "ModelIdentity", "open_for_writing"]

_COPY_ROWS = 16384  # number of rows to copy at a time when rows are dropped


class ImageIndex:
    """An existing index, opened for reading. Use `open_for_writing` to create an index or add images.

    Args:
        folder: folder of the index.

    Raises:
        MissingFileError: the index does not exist.
        WorkdirError: the index is damaged or has another format version.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._header = self._read_header()

    def __len__(self) -> int:
        return self._header.count

    @property
    def dimension(self) -> int:
        """Dimension of the vectors."""
        return self._header.dimension

    @property
    def model(self) -> ModelIdentity:
        """The model that built the index."""
        return self._header.model

    @property
    def generation(self) -> int:
        """Number of times rows were dropped; together with the number of images, it identifies the index state."""
        return self._header.generation

    @property
    def vectors(self) -> Float32[np.ndarray, "images dimension"]:
        """All vectors, memory-mapped from the file."""
        if not len(self):  # an empty file cannot be memory-mapped
            return np.zeros((0, self.dimension), np.float32)
        return np.memmap(self._vectors_file, "<f4", "r", shape=(len(self), self.dimension))

    def entries(self) -> Iterator[Entry]:
        """Yields the metadata of all images, in row order."""
        return (self._parse(line, row) for row, line in enumerate(self._read_lines()))

    def at(self, rows: Sequence[int]) -> list[Entry]:
        """Returns the metadata of the images in `rows`, in the same order."""
        entries = dict.fromkeys(rows)
        # With a million images, this takes 0.25 s, because lines that are not requested are not parsed.
        for row, line in enumerate(itertools.islice(self._read_lines(), max(entries, default=-1) + 1)):
            if row in entries:
                entries[row] = self._parse(line, row)
        return [entries[row] for row in rows]

    def open_entries(self) -> EntryReader:
        """Opens the metadata for reading single rows quickly. Raises WorkdirError if an entry is damaged."""
        return EntryReader(self._entries_file, len(self))

    def _parse(self, line: bytes, row: int) -> Entry:
        return parse_entry(line, f"{self._entries_file}, line {row + 1}")

    def _read_lines(self) -> Iterator[bytes]:
        return read_lines(self._entries_file, len(self))

    def check_model(self, model: ModelIdentity) -> None:
        """Raises WorkdirError if the index was built with a model other than `model`; the message names both."""
        if model != self.model:
            raise WorkdirError(
                f"the index in {self.folder} was built with a model ({self.model}) other than the current one "
                f"({model}): use the --workdir and --checkpoint it was built with, or build an index of this model in "
                "another folder with --index"
            )

    def append(self, vectors: Float32[np.ndarray, "images dimension"], entries: Sequence[Entry]) -> None:
        """Appends images. They become visible together, after all of them are written to disk.

        Raises:
            ValueError: the numbers of entries and vectors differ, or vectors have another dimension or are not finite.
        """
        if vectors.shape != (len(entries), self.dimension) or not np.isfinite(vectors).all():
            raise ValueError(
                f"{len(entries)} images require finite vectors of shape {(len(entries), self.dimension)}, "
                f"got shape {vectors.shape}"
            )
        lines = "".join(json_line(dataclasses.asdict(entry)) + "\n" for entry in entries).encode()
        for path, content in ((self._vectors_file, vectors.astype("<f4").tobytes()), (self._entries_file, lines)):
            with path.open("ab") as file:
                _write(file, [content])
        header = self._header
        self._write_header(
            dataclasses.replace(header, count=len(self) + len(entries), entries_bytes=header.entries_bytes + len(lines))
        )

    def drop(self, mask: Bool[np.ndarray, " images"]) -> None:
        """Drops the rows where `mask` is true, by rewriting the files and then deleting the old ones."""
        retained, vectors = ~mask, self.vectors
        old = self._header
        new = dataclasses.replace(old, generation=old.generation + 1, count=int(retained.sum()))
        with (self.folder / new.vectors_name).open("wb") as file:
            starts = range(0, len(self), _COPY_ROWS)
            _write(file, (vectors[i : i + _COPY_ROWS][retained[i : i + _COPY_ROWS]].tobytes() for i in starts))
        with (self.folder / new.entries_name).open("wb") as file:
            size = _write(file, itertools.compress(self._read_lines(), retained))
        self._write_header(dataclasses.replace(new, entries_bytes=size))
        self._clean()

    @property
    def _vectors_file(self) -> Path:
        return self.folder / self._header.vectors_name

    @property
    def _entries_file(self) -> Path:
        return self.folder / self._header.entries_name

    def _clean(self) -> None:
        """Removes files of other generations, and incomplete data that a killed process appended."""
        for pattern in ("vectors-*.f32", "entries-*.jsonl"):
            for path in self.folder.glob(pattern):
                if path not in (self._vectors_file, self._entries_file):
                    path.unlink()
        os.truncate(self._vectors_file, len(self) * self.dimension * 4)
        os.truncate(self._entries_file, self._header.entries_bytes)

    def _read_header(self) -> Header:
        header = read_header(self.folder)
        vectors_bytes = header.count * header.dimension * 4
        expected_sizes = {header.vectors_name: vectors_bytes, header.entries_name: header.entries_bytes}
        for name, expected_size in expected_sizes.items():
            file = self.folder / name
            size = 0
            if file.exists():
                check_file(file)
                size = file.stat().st_size
            if size < expected_size:
                raise WorkdirError(f"{file} has {size} of {expected_size} bytes: the index is damaged; rebuild it")
        return header

    def _write_header(self, header: Header) -> None:
        write_atomically(self.folder / "index.json", json.dumps(header.to_json(), indent=2) + "\n")
        self._header = header


@contextlib.contextmanager
def open_for_writing(folder: str | os.PathLike, dimension: int, model: ModelIdentity) -> Iterator[ImageIndex]:
    """Opens an index for writing, or creates an empty one. Only one process at a time can write to an index.

    Args:
        folder: folder of the index; created if it does not exist.
        dimension: dimension of the vectors.
        model: the model that computes the vectors.

    Raises:
        LockedError: another process is writing to the index.
        WorkdirError: the index was built with another model, or is damaged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_no_link(folder / "lock")
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process exits, even if it is killed
        except BlockingIOError:
            raise LockedError(f"another process is writing to the index in {folder}: wait until it finishes") from None
        if not (folder / "index.json").exists():
            header = Header(dimension, 0, 0, 0, model)
            for name in (header.vectors_name, header.entries_name):
                (folder / name).touch()
            write_atomically(folder / "index.json", json.dumps(header.to_json(), indent=2) + "\n")
        index = ImageIndex(folder)
        index.check_model(model)
        _check_no_link(index._vectors_file)
        _check_no_link(index._entries_file)
        index._clean()
        yield index


def _check_no_link(path: Path) -> None:
    """Raises WorkdirError if a file that will be appended to or truncated could be a file of another program."""
    if path.is_symlink():
        raise WorkdirError(f"{path} is a link, which could lead to any file: replace it with a copy of the file")


def _write(file: Any, chunks: Iterable[bytes]) -> int:
    """Writes chunks and syncs the file to disk before the header refers to them; returns the number of bytes."""
    try:
        size = sum(file.write(chunk) for chunk in chunks)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        error.filename = file.name  # a write that fails does not name its file
        raise
    return size
