"""The images of a unit of work, read one after the other: image files, tar, Parquet, Arrow and ArrayRecord shards."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from caption_jax.bulk.local_shard import open_local
from caption_jax.bulk.work_units import IMAGES, Unit
from input_pipeline.annotations.fields import normalize
from input_pipeline.buckets import BucketImage
from input_pipeline.errors import DataError
from input_pipeline.extras import optional_packages
from input_pipeline.files import is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES, sniff_format
from input_pipeline.limits import Limits
from input_pipeline.prepared.shards import decode_image_file
from input_pipeline.sources.parquet import ID_COLUMNS, IMAGE_COLUMNS
from input_pipeline.sources.shard_images import OpenShard
from input_pipeline.sources.tar_members import Member, read_members

_PATH_COLUMNS = ("path", "image_path", "file_name", "filename")
_ROWS = 64  # that are read together
_EXAMPLE_IMAGES = (*IMAGE_COLUMNS, "image/encoded")  # features of TFDS and of other examples
_EXAMPLE_IDS = (*ID_COLUMNS, "image/id", "image/filename")


@dataclasses.dataclass(frozen=True)
class UnitImage:
    """An image of a unit.

    Attributes:
        source: path or URL of its file or shard.
        key: name of the image in the shard; "" for an image file.
        image: the file, the encoded image or a function that returns it; None if there is an error.
        error: why the image, or a part of the shard, cannot be read.
    """

    source: str
    key: str
    image: Path | bytes | Callable[[], bytes] | None
    error: str = ""


def open_images(unit: Unit, limits: Limits) -> Iterator[UnitImage]:
    """Yields the images of a unit in order. What cannot be read is yielded with an error.

    A shard that is on a bucket or compressed is first copied to a temporary file.

    Raises:
        MissingPackageError: the package that reads the shard is not installed.
    """
    if unit.kind == IMAGES:
        for path in unit.paths:
            yield UnitImage(path, "", _make_reader(path, limits))
        return
    reader = {"tar": _read_tar, "parquet": _read_parquet, "arrow": _read_arrow, "array_record": _read_records}[
        unit.kind
    ]
    try:
        with open_local(unit.name) as (file, problem):
            for key, image, error in reader(file, unit.name, limits):
                yield UnitImage(unit.name, key, image, error)
            if problem:
                yield UnitImage(unit.name, "", None, problem)
    except (OSError, DataError) as error:  # OSError also for shards that are not in the format of their name
        yield UnitImage(unit.name, "", None, str(error).partition("\n")[0])


_Item = tuple[str, Any, str]  # key, image and error of a `UnitImage`


def _make_reader(path: str, limits: Limits) -> Path | Callable[[], bytes]:
    if is_on_bucket(path):
        return BucketImage(path, limits.image_file_bytes)
    return Path(path)


def _read_tar(file: str, source: str, limits: Limits) -> Iterator[_Item]:
    problems: list[_Item] = []
    shard = OpenShard(file)
    for member in read_members(shard.fileno(), lambda kind, text: problems.append(("", None, f"{kind}: {text}"))):
        name = os.path.basename(member.name)
        if name.startswith(".") or not name.lower().endswith(NAME_SUFFIXES):
            continue
        if member.size > limits.image_file_bytes:
            yield member.name, None, f"has {member.size:,} bytes, above config.limits.image_file_bytes"
        else:
            yield member.name, functools.partial(_read_member, shard, member), ""
    yield from problems


def _read_member(shard: OpenShard, member: Member) -> bytes:
    """Reads a member. Raises OSError if the file ends before it does."""
    content = b""
    while len(content) < member.size:
        part = os.pread(shard.fileno(), member.size - len(content), member.offset + len(content))
        if not part:
            raise OSError("the shard ends within the image")
        content += part
    return content


def _read_parquet(file: str, source: str, limits: Limits) -> Iterator[_Item]:
    with optional_packages("a Parquet file"):
        import pyarrow
        import pyarrow.parquet
    OpenShard(file)  # checks that it is a regular file
    try:
        with pyarrow.parquet.ParquetFile(file) as shard:
            columns = _find_columns(shard.schema_arrow)
            yield from _read_batches(shard.iter_batches(_ROWS, columns=columns), source, limits)
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot be read as Parquet: {error}") from error


def _read_arrow(file: str, source: str, limits: Limits) -> Iterator[_Item]:
    """Reads a file that `datasets.Dataset.save_to_disk` or another program has written, as a stream or as a file."""
    with optional_packages("an Arrow file"):
        import pyarrow
        import pyarrow.ipc
    OpenShard(file)
    try:
        with pyarrow.memory_map(file) as content:
            try:
                batches: Any = pyarrow.ipc.open_stream(content)
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(content)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
                columns = _find_columns(opened.schema)
            else:
                columns = _find_columns(batches.schema)
            small = (batch.slice(start, _ROWS) for batch in batches for start in range(0, len(batch), _ROWS))
            yield from _read_batches((batch.select(columns) for batch in small), source, limits)
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot be read as Arrow: {error}") from error


def _find_columns(schema: Any) -> list[str]:
    """Returns the column of the images or their paths, and that of the ids if there is one.

    Raises:
        DataError: there is no column of images.
    """
    import pyarrow.types as types

    names = {normalize(field.name): field.name for field in reversed(schema)}

    def choose(aliases: Iterable[str], is_type: Callable[[Any], bool]) -> list[str]:
        found = (names[normalize(alias)] for alias in aliases if normalize(alias) in names)
        return [name for name in found if is_type(schema.field(name).type)][:1]

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def is_image(kind: Any) -> bool:
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        return is_bytes or types.is_struct(kind) or is_text(kind)

    image = choose(IMAGE_COLUMNS, is_image) or choose(_PATH_COLUMNS, is_text)
    if not image:
        raise DataError(f"has no column of images or paths; its columns are {', '.join(schema.names)[:300]}")
    ids = choose(ID_COLUMNS, lambda kind: is_text(kind) or types.is_integer(kind))
    return list(dict.fromkeys([*image, *ids]))


def _read_batches(batches: Iterable[Any], source: str, limits: Limits) -> Iterator[_Item]:
    """Yields the images of record batches, whose first column is that of the images. The second has their ids."""
    number = 0
    for batch in batches:
        ids = batch.column(batch.num_columns - 1) if batch.num_columns > 1 else [None] * len(batch)
        for value, image_id in zip(batch.column(0), ids, strict=True):
            identity = image_id.as_py() if image_id is not None else None
            image = _parse_value(value.as_py(), source, limits)
            key = str(number if identity is None else identity)
            yield key, image, "" if image is not None else "the row has no image"
            number += 1


def _parse_value(value: Any, source: str, limits: Limits) -> Path | bytes | Callable[[], bytes] | None:
    """Returns the image of a cell: bytes, a path relative to the folder of the shard, or a structure of both."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return value
    if is_on_bucket(value):
        return _make_reader(value, limits)
    separator = "/" if is_on_bucket(source) else os.sep
    return _make_reader(os.path.join(source.rpartition(separator)[0], value), limits)


def _read_records(file: str, source: str, limits: Limits) -> Iterator[_Item]:
    """Reads a file of encoded images, of records of `prepare`, or of `tf.train.Example` messages as of TFDS."""
    with optional_packages("an ArrayRecord file"):
        from array_record.python.array_record_module import ArrayRecordReader
    OpenShard(file)
    reader = ArrayRecordReader(file)
    if not reader.ok():
        raise DataError("is not an ArrayRecord file, or is truncated")
    count = reader.num_records()
    for start in range(0, count, _ROWS):
        numbers = list(range(start, min(start + _ROWS, count)))
        for number, record in zip(numbers, _read_numbers(reader, numbers), strict=True):
            if isinstance(record, Exception):
                yield str(number), None, f"record {number} cannot be read: {record}"
            elif sniff_format(record):
                yield str(number), record, ""
            elif prepared := decode_image_file(record):
                yield str(prepared[0]), prepared[1], ""
            else:
                yield _parse_example(record, number)


def _read_numbers(reader: Any, numbers: list[int]) -> list[bytes | Exception]:
    """Returns records, or the error of those that are damaged."""
    try:
        return reader.read(numbers)
    except (RuntimeError, ValueError) as error:
        if len(numbers) == 1:
            return [error]
        return [record for number in numbers for record in _read_numbers(reader, [number])]


def _parse_example(record: bytes, number: int) -> _Item:
    with optional_packages("an ArrayRecord file of TFDS"):
        from google.protobuf.message import DecodeError
        from tensorflow.core.example.example_pb2 import Example
    try:
        features = Example.FromString(record).features.feature
    except DecodeError:
        return str(number), None, "the record is neither an image nor a tf.train.Example"

    def read(names: Iterable[str]) -> list[Any]:
        present = (features[name] for name in names if name in features)
        values = ([*feature.bytes_list.value, *feature.int64_list.value] for feature in present)
        return next(filter(None, values), [])

    images, ids = read(_EXAMPLE_IMAGES), read(_EXAMPLE_IDS)
    key = ids[0] if ids else number
    key = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
    if not images:
        return key, None, f"the record has no image; its features are {', '.join(sorted(features))[:300]}"
    return key, images[0], ""
