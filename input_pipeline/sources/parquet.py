"""The `parquet` source: image bytes and captions in columns, as in image datasets on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline.annotations.caption_file import CaptionFile, describe_value
from input_pipeline.annotations.fields import CAPTION_FIELDS, normalize
from input_pipeline.data_spec import DataSpec
from input_pipeline.disk_faults import format_bytes
from input_pipeline.errors import DataError
from input_pipeline.extras import optional_packages
from input_pipeline.files import is_on_bucket
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Report, Split
from input_pipeline.sources.row_groups import CACHED_BYTES, ImageColumn, ParquetImage, describe_error, open_parquet_file
from input_pipeline.sources.shard_images import OpenShard, ShardState
from input_pipeline.sources.shard_names import Shard, find_shards
from input_pipeline.sources.shard_splits import SHARD_AND_KEY, Sample, check_keys, clean_captions, make_shard_splits

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

# Names in order of precedence; docs/data.md lists them.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
ID_COLUMNS = ("image_id", "id", "key", "__key__", "file_name", "filename")
_LARGE_GROUP = 2**20  # bytes

log = logging.getLogger(__name__)


def open_parquet(spec: DataSpec, limits: Limits = DEFAULT_LIMITS) -> dict[str, Split]:
    """Opens the Parquet files of a folder, and reports problems with them.

    Captions and ids are read into memory. Images are read on access, from any thread, in units of row groups.

    Raises:
        DataError: no shard matches a pattern, a split has no usable images, or there are problems and `on_error` is
            "stop".
        ConfigError: the splits are defined by keys of the folder source.
        MissingPackageError: the `parquet` extra is not installed.
    """
    with optional_packages("a Parquet dataset"):
        import pyarrow.parquet  # noqa: F401 - for the error if it is missing

    check_keys(spec)
    report = Report(spec.report_subject(spec.root or "."))
    shards = find_shards(spec, ".parquet", report)
    samples: list[Sample] = []
    group_bytes: list[int] = []
    for shard in shards:
        reader = _ParquetReader(shard, spec, limits, report)
        try:
            samples += reader.read()
        except (OSError, DataError) as error:
            report.add("unreadable shards", str(error))
        group_bytes += reader.group_bytes
    _log_cost(group_bytes, len(samples), spec.shuffle_window)
    return make_shard_splits(samples, shards, spec, report)


def _log_cost(group_bytes: Sequence[int], images: int, window: int) -> None:
    """Logs what an epoch reads, unless the row groups stay in memory until all of their images were read."""
    total, mean = sum(group_bytes), sum(group_bytes) // max(len(group_bytes), 1)
    # Reading the next window begins before all images of the last one are read.
    fitting = CACHED_BYTES // 2 * images // max(total, 1)
    if total > CACHED_BYTES and mean > _LARGE_GROUP and not 0 < window <= fitting:
        log.info(
            "Each image is read with its row group, of %s on average. To read each row group only once per epoch, set "
            'config.data.shuffle_window to at most %d, or config.data.pixel_cache.use="always".',
            *(format_bytes(mean), fitting),
        )


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Names of columns.

    Attributes:
        image: column of the images, as Parquet names it: `image.bytes` in a column of structures.
        caption: column of the captions.
        image_id: column of the ids; "" if there is none.
    """

    image: str
    caption: str
    image_id: str


class _ParquetReader:
    """Reads the captions and ids of one file.

    Args:
        shard: the file.
        spec: `config.data`.
        limits: `config.limits`.
        report: receives rows that cannot be used.

    Attributes:
        group_bytes: stored bytes of the images of each row group.
    """

    def __init__(self, shard: Shard, spec: DataSpec, limits: Limits, report: Report):
        self.group_bytes: list[int] = []
        self._shard, self._spec, self._report = shard, spec, report
        self._checker = CaptionFile(shard.path, report.add, limits=limits)

    def read(self) -> list[Sample]:
        """Returns the usable samples.

        Raises:
            OSError: the file cannot be read.
            DataError: it is not a complete Parquet file, or has no columns of images and captions.
        """
        import pyarrow

        path = os.fspath(self._shard.path)
        if is_on_bucket(path):
            state = ShardState.of_object(path)
        else:
            opened = OpenShard(path)
            state = ShardState.of_file(path, opened.fileno())
        try:
            file = open_parquet_file(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a Parquet file, or is truncated ({describe_error(error)})") from None
        with file:
            columns = find_columns(file.schema_arrow, self._spec, path)
            image_column = ImageColumn(state, columns.image)
            samples: list[Sample] = []
            first = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                try:
                    samples += self._read_group(file, columns, image_column, group, first)
                except (pyarrow.ArrowException, OSError) as error:
                    self._report.add(
                        "unreadable row groups", f"{path}, rows {first} to {first + rows - 1}: {describe_error(error)}"
                    )
                first += rows
        if not first:
            self._report.add("empty shards", path)
        return samples

    def _read_group(
        self, file: pyarrow.parquet.ParquetFile, columns: _Columns, image_column: ImageColumn, group: int, first: int
    ) -> list[Sample]:
        names = [columns.caption] + [columns.image_id] * bool(columns.image_id)
        table = file.read_row_group(group, columns=names)
        captions = _list_values(table.column(columns.caption))
        ids = _list_values(table.column(columns.image_id)) if columns.image_id else [None] * len(captions)
        chunk = _find_chunk(file, columns.image, group)
        self.group_bytes.append(chunk.total_compressed_size)
        missing = find_missing_images(file, columns.image, group)
        samples = []
        for row, (value, image_id) in enumerate(zip(captions, ids, strict=True)):
            name = f"{self._shard.name}[{first + row}]"
            if row in missing:
                self._report.add("rows without an image", name)
                continue
            if not columns.image_id:
                image_id = f"{self._shard.name}/{first + row}"
            elif not isinstance(image_id, str | int):
                self._report.add("rows without an id", f"{name}: {columns.image_id!r} is {_describe(image_id)}")
                continue
            texts = [value] if isinstance(value, str) else [] if value is None else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                self._report.add("unreadable captions", f"{name}: {columns.caption!r} is {_describe(value)}")
                continue
            kept = clean_captions(image_id, texts, name, self._checker, self._report.add)
            if kept:
                samples.append(Sample(ParquetImage(image_column, group, row), kept, image_id, name, self._shard.split))
        return samples


def _describe(value: Any) -> str:
    return "not UTF-8" if isinstance(value, UnicodeDecodeError) else describe_value(value)


def _list_values(column: pyarrow.ChunkedArray) -> list[Any]:
    """Returns the values of a column; text that is not UTF-8 is replaced by the error."""

    def convert(value: Any) -> Any:
        try:
            return value.as_py()
        except UnicodeDecodeError as error:
            return error

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return list(map(convert, column))


def find_missing_images(file: pyarrow.parquet.ParquetFile, column: str, group: int) -> frozenset[int]:
    """Returns the rows of a row group without an image. Images are read only if the file does not exclude such rows."""
    statistics = _find_chunk(file, column, group).statistics
    if statistics is not None and statistics.has_null_count and not statistics.null_count:
        return frozenset()
    values = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
    if column.endswith(".bytes"):
        is_missing = zip(values.is_null(), values.field("bytes").is_null(), strict=True)
        return frozenset(row for row, nulls in enumerate(is_missing) if any(null.as_py() for null in nulls))
    return frozenset(row for row, null in enumerate(values.is_null()) if null.as_py())


def _find_chunk(file: pyarrow.parquet.ParquetFile, column: str, group: int) -> pyarrow.parquet.ColumnChunkMetaData:
    metadata = file.metadata.row_group(group)
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == column)


def find_columns(schema: pyarrow.Schema, spec: DataSpec, path: str) -> _Columns:
    """Finds the columns of a file by the config, or by their names and types.

    Raises:
        DataError: there is no column of images or captions, or the column of ids does not exist. The message lists the
            columns.
    """
    fields = {field.name: field for field in schema}
    wants_id = spec.id_column != SHARD_AND_KEY
    images = [name for name in _choose(schema, spec.image_column, IMAGE_COLUMNS) if _find_image(fields[name])]
    captions = [name for name in _choose(schema, spec.caption_column, CAPTION_FIELDS) if _is_text(fields[name].type)]
    ids = _choose(schema, spec.id_column, ID_COLUMNS) if wants_id else ()
    ids = [name for name in ids if _is_id(fields[name].type)]
    problems = []
    if not images:
        problems.append(("images", "image_column", spec.image_column))
    if not captions:
        problems.append(("captions", "caption_column", spec.caption_column))
    if spec.id_column and wants_id and not ids:
        problems.append(("ids", "id_column", spec.id_column))
    for kind, key, name in problems:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)[:500]
        named = f" named {name!r}" if name else ""
        raise DataError(f"{path} has no column of {kind}{named} (config.data.{key}); its columns are {listed}")
    return _Columns(_find_image(fields[images[0]]), captions[0], ids[0] if ids else "")


def _choose(schema: pyarrow.Schema, name: str, names: Sequence[str]) -> Iterator[str]:
    """Yields the columns that have the configured name, or the known names in their order."""
    if name:
        yield from [name] if schema.names.count(name) == 1 else []
        return
    existing = {normalize(column): column for column in reversed(schema.names)}
    yield from (existing[normalize(alias)] for alias in names if normalize(alias) in existing)


def _find_image(field: pyarrow.Field) -> str:
    """Returns the name of a column of bytes, or of the field `bytes` in a column of structures; "" if it is neither."""
    import pyarrow.types as types

    if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        field_type = field.type.field("bytes").type
        return f"{field.name}.bytes" if _is_binary(field_type) else ""
    return field.name if _is_binary(field.type) else ""


def _is_binary(value_type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_binary(value_type) or types.is_large_binary(value_type)


def _is_text(value_type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    if types.is_list(value_type) or types.is_large_list(value_type) or types.is_dictionary(value_type):
        value_type = value_type.value_type
    return types.is_string(value_type) or types.is_large_string(value_type)


def _is_id(value_type: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_string(value_type) or types.is_large_string(value_type) or types.is_integer(value_type)
