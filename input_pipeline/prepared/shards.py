"""Records and shards of a prepared dataset.

A record consists of the length of a header (4 bytes, little-endian), the header (a JSON object) and the image:

    {"id": 7, "name": "a.jpg", "captions": ["a red kite"], "format": "raw", "height": 224, "width": 224}

The image of the format "raw" is uint8 [height, width, 3], RGB; that of the format "jpeg" is a JPEG file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline.errors import DataError
from input_pipeline.extras import optional_packages
from input_pipeline.records import Record

RAW, JPEG = "raw", "jpeg"
IMAGE_FORMATS = (RAW, JPEG)

# Each record is a chunk of its own, so that one can be read without others. Pixels do not compress well.
WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # the fastest for random access
_READER_BUFFER_BYTES = 2**15
_MAX_OPEN = 256  # shards per process
_LENGTH_BYTES = 4


def encode_record(record: Record, image: bytes, image_format: str, size: int) -> bytes:
    """Returns a record.

    Args:
        record: the id, name and captions.
        image: the pixels or the JPEG file.
        image_format: "raw" or "jpeg".
        size: side of the image, in pixels.
    """
    fields = {
        "id": record.image_id,
        "name": os.path.basename(record.name),
        "captions": record.captions,
        "format": image_format,
        "height": size,
        "width": size,
    }
    header = json.dumps(fields).encode()
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + image


def decode_record(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Returns the header and the image of a record, without copying the image."""
    start = _image_start(content)
    return json.loads(content[_LENGTH_BYTES:start]), memoryview(content)[start:]


def decode_image_file(content: bytes) -> tuple[str | int, bytes] | None:
    """Returns the id of a record and its image as a file, or None if the content is not a record.

    The image is a JPEG, or raw pixels as a PPM.
    """
    if content[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or _image_start(content) > len(content):
        return None
    try:
        header, image = decode_record(content)
        is_raw = header["format"] == RAW
        return header["id"], _ppm_header(header["width"], header["height"]) * is_raw + image
    except (ValueError, KeyError, TypeError):
        return None


def _ppm_header(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height)


def _image_start(content: bytes) -> int:
    return _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")


@functools.lru_cache(_MAX_OPEN)
def _open_reader(path: str) -> Any:
    with optional_packages("reading a prepared dataset"):
        from array_record.python import array_record_module

    return array_record_module.ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES)


def read_record(path: str, row: int) -> bytes:
    """Returns a record of a shard. Thread-safe.

    Raises:
        OSError: the shard does not exist any more, or the record is damaged.
    """
    try:
        return _open_reader(path).read([row])[0]
    except (RuntimeError, IndexError) as error:
        _open_reader.cache_clear()  # the shard may be readable again later
        raise OSError(f"record {row} of {path} cannot be read: {error}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image in a shard.

    Attributes:
        path: the shard.
        row: index of the record.
        size: side of the image, in pixels.
        image_format: "raw" or "jpeg".
    """

    path: str
    row: int
    size: int
    image_format: str

    @property
    def block(self) -> str:
        """The shard."""
        return self.path

    def __call__(self) -> bytes:
        """Returns the image as a file: a JPEG, or raw pixels as a PPM. Raises OSError."""
        content = read_record(self.path, self.row)
        header = _ppm_header(self.size, self.size) if self.image_format == RAW else b""
        return header + content[_image_start(content) :]

    def read_pixels(self) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels of an image in the format "raw", without copying them. Raises OSError."""
        content = read_record(self.path, self.row)
        pixels = np.frombuffer(content, np.uint8, offset=_image_start(content))
        return pixels.reshape(self.size, self.size, 3)


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The JSON file next to a shard.

    Attributes:
        bytes: size of the shard.
        sha256: hash of its records.
        images: id, name and captions of each record.
        skipped: name of each image that could not be read, and why.
    """

    bytes: int
    sha256: str
    images: list[tuple[str | int, str, list[str]]]
    skipped: list[tuple[str, str]]

    def to_json(self) -> str:
        """Returns the contents of the file."""
        return json.dumps(dataclasses.asdict(self))


def shard_path(folder: Path, name: str) -> Path:
    """Returns the file of the records of a shard."""
    return folder / f"{name}.array_record"


def index_path(folder: Path, name: str) -> Path:
    """Returns the JSON file of a shard."""
    return folder / f"{name}.json"


def read_index(folder: Path, name: str) -> ShardIndex:
    """Reads the JSON file of a shard.

    Raises:
        DataError: the file is missing or damaged.
    """
    return ShardIndex(**read_json(index_path(folder, name), {field.name for field in dataclasses.fields(ShardIndex)}))


def read_json(path: Path, keys: set[str]) -> dict[str, Any]:
    """Reads a JSON file of a prepared dataset, which must have these keys.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run the `prepare` command that wrote the folder again") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and run the `prepare` command again") from None
    if not isinstance(values, dict) or set(values) != keys:
        raise DataError(f"{path} must hold the keys {', '.join(sorted(keys))}: delete it, and run `prepare` again")
    return values
