"""Images in Parquet files. A row group is the unit of reading, so the last ones are kept in memory.

Only `open_parquet` makes these images, so PyArrow is installed.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from input_pipeline.buckets import open_ranges
from input_pipeline.files import is_on_bucket
from input_pipeline.sources.shard_images import OpenShard, ShardState

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

CACHED_BYTES = 256 * 2**20  # of row groups per process, not counting the newest


@dataclasses.dataclass(frozen=True)
class ImageColumn:
    """The images of a Parquet file.

    Attributes:
        shard: the file.
        name: the column, `image.bytes` in a column of structures.
    """

    shard: ShardState
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image in a Parquet file.

    Attributes:
        column: the column.
        group: index of the row group in the file.
        row: index of the row in the row group.
    """

    column: ImageColumn
    group: int
    row: int

    @property
    def block(self) -> tuple[ImageColumn, int]:
        """The row group."""
        return self.column, self.group

    def __call__(self) -> bytes:
        """Returns the encoded image.

        Raises:
            OSError: the file does not exist any more, has changed or cannot be read.
        """
        values = _CACHE.get(self.column, self.group)
        try:
            content = values[self.row].as_py()
        except IndexError:
            content = None
        content = content.get("bytes") if isinstance(content, dict) else content
        if content is None:
            raise OSError(f"{self.column.shard.path} has no image in row {self.row} of row group {self.group}")
        return content


def describe_error(error: Exception) -> str:
    """Returns the first line of an error of PyArrow."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class RowGroupCache:
    """The row groups that this process has read last. Thread-safe: each is read once for all threads that wait for it.

    Args:
        max_bytes: size of the row groups that are kept in addition to the newest.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[tuple[ImageColumn, int], Future[pyarrow.ChunkedArray]]
        self._groups = collections.OrderedDict()

    def get(self, column: ImageColumn, group: int) -> pyarrow.ChunkedArray:
        """Returns the images of a row group. Raises OSError."""
        key = column, group
        with self._lock:
            future = self._groups.get(key)
            is_new = future is None
            if is_new:
                future = self._groups[key] = Future()
            self._groups.move_to_end(key)
        if is_new:
            try:
                future.set_result(_read_group(column, group))
            except BaseException as error:
                with self._lock:
                    del self._groups[key]
                future.set_exception(error)
            else:
                self._evict()
        return future.result()

    def _evict(self) -> None:
        with self._lock:
            sizes = {key: future.result().nbytes for key, future in self._groups.items() if future.done()}
            total = sum(sizes.values())
            for key in list(sizes)[:-1]:
                if total <= self._max_bytes:
                    return
                total -= sizes[key]
                del self._groups[key]


_CACHE = RowGroupCache(CACHED_BYTES)


def open_parquet_file(path: str) -> pyarrow.parquet.ParquetFile:
    """Opens a local file, or one in a bucket, of which only the footer and the needed columns are read.

    Raises:
        pyarrow.ArrowException: it is not a complete Parquet file.
        OSError: it cannot be read.
    """
    import pyarrow.parquet

    if not is_on_bucket(path):
        return pyarrow.parquet.ParquetFile(path)
    return pyarrow.parquet.ParquetFile(open_ranges(path), pre_buffer=True)


def _read_group(column: ImageColumn, group: int) -> pyarrow.ChunkedArray:
    import pyarrow

    if not is_on_bucket(column.shard.path):
        shard = OpenShard(column.shard.path)
        column.shard.check(shard.fileno())
    try:
        with open_parquet_file(column.shard.path) as file:
            return file.read_row_group(group, columns=[column.name]).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise OSError(f"{column.shard.path}, row group {group}: {describe_error(error)}") from None
