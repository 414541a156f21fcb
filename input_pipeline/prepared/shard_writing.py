"""Writes and verifies one shard of a prepared dataset, in any process."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import simplejpeg

from input_pipeline.disk_faults import reported_disk_faults
from input_pipeline.errors import DataError, ImageError
from input_pipeline.extras import optional_packages
from input_pipeline.files import write_atomically
from input_pipeline.images import Preprocessing
from input_pipeline.prepared.shards import (
    RAW,
    WRITER_OPTIONS,
    ShardIndex,
    encode_record,
    index_path,
    read_index,
    shard_path,
)
from input_pipeline.records import Record

_RECORDS_PER_READ = 64


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        preprocessing: size of the images, and how they are resized.
        image_format: "raw" or "jpeg".
        quality: quality of JPEGs, 1 to 100.
    """

    preprocessing: Preprocessing
    image_format: str
    quality: int

    def encode(self, record: Record) -> bytes:
        """Decodes and resizes an image, and returns it as it is stored.

        Raises:
            ImageError: the image cannot be read.
        """
        try:
            square = self.preprocessing.load(record.source(), name=record.name)
        except OSError as error:
            raise ImageError(record.name, str(error)) from None
        if self.image_format == RAW:
            return square.tobytes()
        # Without chroma subsampling: the photographs already have it, at their full size.
        return simplejpeg.encode_jpeg(square.copy(), self.quality, "RGB", "444", fastdct=False)


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        folder: folder of the dataset.
        name: name of the shard without its suffix.
        records: the images.
        encoding: how they are stored.
        on_error: "stop" or "skip", what to do about an image that cannot be read.
    """

    folder: Path
    name: str
    records: Sequence[Record]
    encoding: Encoding
    on_error: str


def write_shard(task: ShardTask) -> int:
    """Writes a shard and its JSON file, each atomically. Returns the number of images, including skipped ones.

    Raises:
        DataError: an image cannot be read, and `on_error` is "stop".
        StorageError: the disk is full, or has another fault.
    """
    images: list[tuple[str | int, str, list[str]]] = []
    skipped: list[tuple[str, str]] = []
    digest = hashlib.sha256()

    def write_records(file: Any) -> None:
        writer = _open_writer(file.name)
        for record in task.records:
            try:
                image = task.encoding.encode(record)
            except ImageError as error:
                if task.on_error == "stop":
                    raise DataError(
                        f"{error}; repair or remove the image, or skip such images with --config.data.on_error=skip"
                    ) from None
                skipped.append((record.name, error.reason))
                continue
            size = task.encoding.preprocessing.size
            content = encode_record(record, image, task.encoding.image_format, size)
            digest.update(content)
            writer.write(content)
            images.append((record.image_id, os.path.basename(record.name), list(record.captions)))
        writer.close()

    path = shard_path(task.folder, task.name)
    with reported_disk_faults(folder=path):
        write_atomically(path, write_records)
        index = ShardIndex(path.stat().st_size, digest.hexdigest(), images, skipped)
        write_atomically(index_path(task.folder, task.name), index.to_json())
    return len(task.records)


def verify_shard(shard: tuple[Path, str]) -> int:
    """Reads a shard back and compares it with its JSON file. Returns its number of images, including skipped ones.

    Args:
        shard: folder of the dataset, and name of the shard without its suffix.

    Raises:
        DataError: the shard is damaged.
    """
    folder, name = shard
    index = read_index(folder, name)
    digest, count = hashlib.sha256(), 0
    try:
        for record in _read_records(shard_path(folder, name), len(index.images)):
            digest.update(record)
            count += 1
    except RuntimeError as error:
        raise _damaged(folder, name, str(error)) from None
    if (count, digest.hexdigest()) != (len(index.images), index.sha256):
        raise _damaged(folder, name, f"{count} of {len(index.images)} records, or another hash")
    return count + len(index.skipped)


def _damaged(folder: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{shard_path(folder, name)} is damaged ({reason}): delete {index_path(folder, name)}, and run the same "
        "command again, which writes the shard again"
    )


def _open_writer(path: str) -> Any:
    with optional_packages("preparing a dataset"):
        from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)


def _read_records(path: Path, expected: int) -> Iterator[bytes]:
    with optional_packages("preparing a dataset"):
        from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    for start in range(0, count, _RECORDS_PER_READ):
        yield from reader.read(start, min(start + _RECORDS_PER_READ, count))
    reader.close()
