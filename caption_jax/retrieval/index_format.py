"""The files of an image index, which may be damaged or come from strangers: header, entries and their validation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caption_jax.errors import MissingFileError, WorkdirError
from input_pipeline.errors import DataError
from input_pipeline.safe_open import open_file, read_file

VERSION = 1
_FORMAT = "caption-jax image index"
_MAX_HEADER_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 20
_MAX_NUMBER = 2**63


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Identity of the model that built an index. Vectors of different models are not comparable.

    Attributes:
        step: training step.
        weights: fingerprint of the weights (`caption_jax.runs.weights.fingerprint`).
    """

    step: int
    weights: str

    def __str__(self) -> str:
        return f"step {self.step}, weights {self.weights[:12]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Metadata of an indexed image.

    Attributes:
        id: id of the image in its dataset, or its path.
        path: absolute path; None if the image is not stored in a separate file.
        caption: generated caption; None if captions were disabled.
        size: file size in bytes when the image was indexed.
        mtime_ns: modification time of the file when the image was indexed, in nanoseconds.
    """

    id: str | int
    path: str | None = None
    caption: str | None = None
    size: int | None = None
    mtime_ns: int | None = None

    @property
    def key(self) -> str | int:
        """Unique key of the image in the index."""
        return self.id if self.path is None else self.path

    @property
    def stamp(self) -> tuple[int | None, int | None]:
        """Size and modification time, to detect changes of the file."""
        return self.size, self.mtime_ns


@dataclasses.dataclass(frozen=True)
class Header:
    """Content of index.json, which is replaced whenever images have been added or dropped."""

    dimension: int
    count: int
    generation: int  # number in the file names, incremented when dropping rows rewrites the files
    entries_bytes: int  # total length of the `count` lines
    model: ModelIdentity

    @property
    def vectors_name(self) -> str:
        """Name of the file with the vectors."""
        return f"vectors-{self.generation}.f32"

    @property
    def entries_name(self) -> str:
        """Name of the file with the entries."""
        return f"entries-{self.generation}.jsonl"

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file."""
        file_format = {"format": _FORMAT, "version": VERSION}
        return {**file_format, **dataclasses.asdict(self), "vectors": self.vectors_name, "entries": self.entries_name}


def read_header(folder: Path) -> Header:
    """Reads index.json.

    Raises:
        MissingFileError: it does not exist.
        WorkdirError: it is damaged or has another version.
    """
    path = folder / "index.json"
    try:
        content = json.loads(read_file(path, _MAX_HEADER_BYTES))
    except MissingFileError:
        raise MissingFileError(
            f"{path} is missing: there is no index in {folder}. Build one with --mode=index, or set --index to the "
            "folder of an existing index"
        ) from None
    except (DataError, ValueError, RecursionError) as error:
        raise _make_damaged_error(path, error) from None
    if not isinstance(content, dict):
        raise _make_damaged_error(path, "it is not a JSON object")
    file_format, version = content.get("format"), content.get("version")
    if file_format == _FORMAT and is_number(version) and version > VERSION:
        raise WorkdirError(f"{path} has version {version}; this release reads version {VERSION}: rebuild the index")
    if (file_format, version) != (_FORMAT, VERSION):
        raise _make_damaged_error(path, f"it does not have format {_FORMAT!r}, version {VERSION}")
    try:
        model = ModelIdentity(_get_number(content["model"], "step"), _get_text(content["model"], "weights"))
        numbers = {name: _get_number(content, name) for name in ("dimension", "count", "generation", "entries_bytes")}
    except (KeyError, TypeError, ValueError) as error:
        raise _make_damaged_error(path, f"missing or invalid key: {error}") from None
    return Header(**numbers, model=model)


def read_lines(path: Path, count: int) -> Iterator[bytes]:
    """Yields the first `count` lines of a file of entries.

    Raises:
        WorkdirError: there are fewer lines, or a line is longer than any that this program writes.
    """
    with open_file(path) as file:
        for number in range(1, count + 1):
            line = file.readline(_MAX_LINE_BYTES)
            if len(line) == _MAX_LINE_BYTES:
                raise _make_damaged_error(f"{path}, line {number}", "the line is too long")
            if not line:
                raise _make_damaged_error(path, f"it has {number - 1} of {count} lines")
            yield line


def parse_entry(line: bytes, place: str) -> Entry:
    """Parses a line of a file of entries.

    Args:
        line: the line.
        place: file and line number, for the message.

    Raises:
        WorkdirError: the line is not an entry.
    """
    try:
        fields = json.loads(line)
        entry = Entry(**fields)
    except (ValueError, TypeError, RecursionError):
        raise _make_damaged_error(place, "it is not an entry") from None
    if not (
        is_image_id(entry.id)
        and all(value is None or isinstance(value, str) for value in (entry.path, entry.caption))
        and all(value is None or is_number(value) for value in entry.stamp)
    ):
        raise _make_damaged_error(place, "a value has the wrong type")
    return entry


def is_image_id(value: Any) -> bool:
    """Whether a JSON value can be the id of an image."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def _get_number(content: dict[str, Any], key: str) -> int:
    if not is_number(content[key]) or content[key] < 0:
        raise ValueError(f"{key} is not a number from 0")
    return content[key]


def _get_text(content: dict[str, Any], key: str) -> str:
    if not isinstance(content[key], str):
        raise TypeError(f"{key} is not text")
    return content[key]


def is_number(value: Any) -> bool:
    """Whether a JSON value is an integer of a plausible size."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _make_damaged_error(place: str | Path, reason: object) -> WorkdirError:
    return WorkdirError(f"{place}: the index is damaged ({reason}); rebuild it")
