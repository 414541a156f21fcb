"""The Parquet files of a bulk run, one per unit of work, with one row per image."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from caption_jax.errors import WorkdirError
from input_pipeline.files import storage_path, write_atomically

if TYPE_CHECKING:
    import pyarrow

_NAME = re.compile(r"part-(\d{5,})\.parquet")
_THREADS = 8  # that read the ends of the files
_ROWS = 1024  # that are read together


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one image. The fields are the columns of the Parquet file.

    Attributes:
        source: path or URL of the image file or of the shard.
        key: name of the image in the shard; "" for an image file.
        caption: the caption; None if there is an error, or if captions were disabled.
        log_prob: natural log-probability of the caption, including </s>.
        alternatives: the next best captions and their log-probabilities.
        vector: unit vector of the joint embedding.
        error: why there is no result; None if there is one.
        size: size of an image file in bytes before it was read; None in a shard.
        mtime_ns: modification time of the file in nanoseconds; None in a shard.
    """

    source: str
    key: str = ""
    caption: str | None = None
    log_prob: float | None = None
    alternatives: Sequence[tuple[str, float]] | None = None
    vector: Float32[np.ndarray, " width"] | None = None
    error: str | None = None
    size: int | None = None
    mtime_ns: int | None = None


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of images: all of them, and those with an error."""

    images: int
    errors: int


def make_schema(alternatives: int, width: int) -> pyarrow.Schema:
    """Returns the columns of a run.

    Args:
        alternatives: number of alternatives; without any, there is no such column.
        width: length of the vectors; 0 for no such column.
    """
    import pyarrow as pa

    fields = {"source": pa.string(), "key": pa.string(), "caption": pa.string(), "log_prob": pa.float32()}
    if alternatives:
        fields["alternatives"] = pa.list_(pa.struct({"caption": pa.string(), "log_prob": pa.float32()}))
    if width:
        fields["vector"] = pa.list_(pa.float32(), width)
    return pa.schema(fields | {"error": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64()})


def part_path(folder: str, number: int) -> str:
    """Returns the path of a Parquet file."""
    return f"{folder}/part-{number:05d}.parquet"


def write_part(folder: str, number: int, rows: Sequence[Row], schema: pyarrow.Schema) -> None:
    """Writes the rows of a unit; the file appears when it is complete.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.Table.from_pylist([_to_columns(row) for row in rows], schema=schema)

    def write(file: BinaryIO) -> None:
        pyarrow.parquet.write_table(table, file)

    write_atomically(part_path(folder, number), write)


def _to_columns(row: Row) -> dict[str, Any]:
    columns = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    for name in ("source", "key", "caption", "error"):
        # Names of files that are not UTF-8 have surrogates, which Parquet cannot store.
        columns[name] = None if columns[name] is None else columns[name].encode("utf-8", "backslashreplace").decode()
    if row.alternatives is not None:
        columns["alternatives"] = [{"caption": text, "log_prob": value} for text, value in row.alternatives]
    return columns


def has_part(folder: str, number: int) -> bool:
    """Returns whether a Parquet file is finished."""
    return storage_path(part_path(folder, number)).exists()


def list_parts(folder: str) -> list[int]:
    """Returns the numbers of the finished Parquet files in ascending order."""
    names = (os.path.basename(os.fspath(path)) for path in storage_path(folder).iterdir())
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def count_rows(folder: str, numbers: Sequence[int]) -> list[Counts]:
    """Counts the rows of Parquet files. Raises WorkdirError if one is damaged."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda number: count_part(folder, number), numbers))


def count_part(folder: str, number: int) -> Counts:
    """Counts the rows of a Parquet file. Raises WorkdirError if it is damaged."""
    with _open(part_path(folder, number)) as file:
        errors = file.read(columns=["error"]).column(0)
        return Counts(len(errors), len(errors) - errors.null_count)


def read_rows(folder: str, number: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields some columns of the rows of a Parquet file; a vector is an array.

    Raises:
        WorkdirError: the file is damaged, or has no such column.
    """
    with _open(part_path(folder, number)) as file:
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise WorkdirError(f"{part_path(folder, number)} has no column {', '.join(sorted(missing))}")
        for batch in file.iter_batches(_ROWS, columns=list(columns)):
            names = [name for name in columns if name != "vector"]
            vectors = batch.column("vector") if "vector" in columns else None
            for index, row in enumerate(batch.select(names).to_pylist()):
                if vectors is not None:
                    value = vectors[index]
                    row["vector"] = np.asarray(value.values) if value.is_valid else None
                yield row


def _open(path: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(storage_path(path).open("rb"), pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise WorkdirError(f"{path} is damaged ({error}): delete it and start the command again") from error
