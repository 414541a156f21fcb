"""An index of images on disk: a unit vector and a line of JSON for each. docs/search.md describes the files.

Files only grow, and the header, which is replaced as a whole, says how much of them counts. So whatever moment a run is
killed at, the index holds what the header said last; the next run cuts off the rest.
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

from caption_jax.errors import LockedError, MissingFileError, WorkdirError
from caption_jax.files import json_line
from input_pipeline.files import write_atomically

VERSION = 1
_FORMAT = "caption-jax image index"
_COPIED_ROWS = 16384  # at a time, when rows are dropped


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which model made an index: vectors of another one cannot be compared with its.

    Attributes:
        step: of training.
        weights: their `caption_jax.runs.weights.fingerprint`.
    """

    step: int
    weights: str

    def __str__(self) -> str:
        return f"step {self.step}, weights {self.weights[:12]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What an index knows of an image, beside its vector.

    Attributes:
        id: the image's id in its data set, or its path.
        path: absolute; None for an image that lies in no file of its own.
        caption: that the model gave it; None where captions were switched off.
        size: of the file in bytes, when it was read.
        mtime_ns: time of the file's last change, when it was read.
    """

    id: str | int
    path: str | None = None
    caption: str | None = None
    size: int | None = None
    mtime_ns: int | None = None

    @property
    def key(self) -> str | int:
        """What tells an image from all others in the index."""
        return self.id if self.path is None else self.path

    @property
    def stamp(self) -> tuple[int | None, int | None]:
        """Changes when the file does."""
        return self.size, self.mtime_ns


@dataclasses.dataclass(frozen=True)
class _Header:
    dimension: int
    count: int
    generation: int  # files are written anew, under the next number, when rows are dropped
    entries_bytes: int  # length of `count` lines
    model: ModelIdentity

    @property
    def vectors(self) -> str:
        return f"vectors-{self.generation}.f32"

    @property
    def entries(self) -> str:
        return f"entries-{self.generation}.jsonl"

    def to_json(self) -> dict[str, Any]:
        kind = {"format": _FORMAT, "version": VERSION}
        return {**kind, **dataclasses.asdict(self), "vectors": self.vectors, "entries": self.entries}


class ImageIndex:
    """An index that is there. `writing` opens one to add to it.

    Args:
        folder: that holds it.

    Raises:
        MissingFileError: there is none.
        WorkdirError: it is damaged, or of another version of this program.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._header = self._read_header()

    def __len__(self) -> int:
        return self._header.count

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._header.dimension

    @property
    def model(self) -> ModelIdentity:
        """The model whose vectors these are."""
        return self._header.model

    @property
    def generation(self) -> int:
        """How often rows were dropped; with the number of images it tells one state of an index from another."""
        return self._header.generation

    @property
    def vectors(self) -> Float32[np.ndarray, "images dimension"]:
        """All vectors, mapped from the file: what is not looked at is not read."""
        if not len(self):  # an empty file cannot be mapped
            return np.zeros((0, self.dimension), np.float32)
        return np.memmap(self._vectors_file, "<f4", "r", shape=(len(self), self.dimension))

    def entries(self) -> Iterator[Entry]:
        """Yields what is known of each image, in the order of rows."""
        return (Entry(**json.loads(line)) for line in self._lines())

    def at(self, rows: Sequence[int]) -> list[Entry]:
        """What is known of the images in some rows, in the order asked for."""
        wanted = dict.fromkeys(rows)
        # Only the wanted lines are parsed: of a million entries that takes a quarter of a second.
        for row, line in enumerate(itertools.islice(self._lines(), max(wanted, default=-1) + 1)):
            if row in wanted:
                wanted[row] = Entry(**json.loads(line))
        return [wanted[row] for row in rows]

    def _lines(self) -> Iterator[bytes]:
        with self._entries_file.open("rb") as file:
            yield from itertools.islice(file, len(self))

    def check_model(self, model: ModelIdentity) -> None:
        """Raises WorkdirError, which names both, if the index was made with another model than `model`."""
        if model != self.model:
            raise WorkdirError(
                f"the index in {self.folder} was made with another model ({self.model}) than the one that is used now "
                f"({model}): name the workdir and --checkpoint that it was made with, or make an index of this model "
                "in another folder with --index"
            )

    def append(self, vectors: Float32[np.ndarray, "images dimension"], entries: Sequence[Entry]) -> None:
        """Adds images behind the last; they count from when all of them are on the disk.

        Raises:
            ValueError: there are more or fewer entries than vectors, or vectors of another length or not of finite
                numbers.
        """
        if vectors.shape != (len(entries), self.dimension) or not np.isfinite(vectors).all():
            raise ValueError(
                f"{len(entries)} images need finite vectors of shape {(len(entries), self.dimension)}, "
                f"but there are some of shape {vectors.shape}"
            )
        lines = "".join(json_line(dataclasses.asdict(entry)) + "\n" for entry in entries).encode()
        for path, content in ((self._vectors_file, vectors.astype("<f4").tobytes()), (self._entries_file, lines)):
            with path.open("ab") as file:
                _write(file, [content])
        header = self._header
        self._write_header(
            dataclasses.replace(header, count=len(self) + len(entries), entries_bytes=header.entries_bytes + len(lines))
        )

    def keep(self, kept: Bool[np.ndarray, " images"]) -> None:
        """Drops all rows but those; writes the rest anew, and takes the old files away when that is done."""
        old, vectors = self._header, self.vectors
        new = dataclasses.replace(old, generation=old.generation + 1, count=int(kept.sum()))
        with (self.folder / new.vectors).open("wb") as file:
            starts = range(0, len(self), _COPIED_ROWS)
            _write(file, (vectors[i : i + _COPIED_ROWS][kept[i : i + _COPIED_ROWS]].tobytes() for i in starts))
        with (self.folder / new.entries).open("wb") as file:
            size = _write(file, itertools.compress(self._lines(), kept))
        self._write_header(dataclasses.replace(new, entries_bytes=size))
        self._clean()

    @property
    def _vectors_file(self) -> Path:
        return self.folder / self._header.vectors

    @property
    def _entries_file(self) -> Path:
        return self.folder / self._header.entries

    def _clean(self) -> None:
        """Removes what does not count: files of another generation, and what a killed run wrote last."""
        for pattern in ("vectors-*.f32", "entries-*.jsonl"):
            for path in self.folder.glob(pattern):
                if path not in (self._vectors_file, self._entries_file):
                    path.unlink()
        os.truncate(self._vectors_file, len(self) * self.dimension * 4)
        os.truncate(self._entries_file, self._header.entries_bytes)

    def _read_header(self) -> _Header:
        path = self.folder / "index.json"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            raise MissingFileError(
                f"{path} is missing: there is no index in {self.folder}. Make one with --mode=index, or name its "
                "folder with --index"
            ) from None
        if (found.get("format"), found.get("version")) != (_FORMAT, VERSION):
            raise WorkdirError(
                f"{path} is of format {found.get('format')!r}, version {found.get('version')}; this program reads "
                f"{_FORMAT!r}, version {VERSION}: make the index anew"
            )
        names = [field.name for field in dataclasses.fields(_Header)]
        header = _Header(**{**{name: found[name] for name in names}, "model": ModelIdentity(**found["model"])})
        wanted = {header.vectors: header.count * header.dimension * 4, header.entries: header.entries_bytes}
        for name, size in wanted.items():
            file = self.folder / name
            has = file.stat().st_size if file.exists() else 0
            if has < size:
                raise WorkdirError(f"{file} has {has} bytes of {size}: the index is damaged, make it anew")
        return header

    def _write_header(self, header: _Header) -> None:
        write_atomically(self.folder / "index.json", json.dumps(header.to_json(), indent=2) + "\n")
        self._header = header


@contextlib.contextmanager
def writing(folder: str | os.PathLike, dimension: int, model: ModelIdentity) -> Iterator[ImageIndex]:
    """Opens an index to add to it, or makes an empty one. One process at a time can.

    Args:
        folder: of the index; made where it is not there.
        dimension: length of the vectors.
        model: that makes them.

    Raises:
        LockedError: another process is writing to it.
        WorkdirError: the index was made with another model, or is damaged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            raise LockedError(f"another process is writing to the index in {folder}: wait until it is done") from None
        if not (folder / "index.json").exists():
            header = _Header(dimension, 0, 0, 0, model)
            for name in (header.vectors, header.entries):
                (folder / name).touch()
            write_atomically(folder / "index.json", json.dumps(header.to_json(), indent=2) + "\n")
        index = ImageIndex(folder)
        index.check_model(model)
        index._clean()
        yield index


def _write(file: Any, parts: Iterable[bytes]) -> int:
    """Writes to the very disk, so that nothing can count that is not there; returns the number of bytes."""
    size = sum(file.write(part) for part in parts)
    file.flush()
    os.fsync(file.fileno())
    return size
