"""Encoded images that are read from shards when they are used."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading

from input_pipeline.buckets import read_range, stat_file
from input_pipeline.errors import MissingFileError
from input_pipeline.files import is_on_bucket
from input_pipeline.safe_open import UnreadableFileError, check_file

_MAX_OPEN = 64  # shards per process


@dataclasses.dataclass(frozen=True)
class ShardState:
    """A shard as it was when it was indexed.

    Attributes:
        path: the file.
        size: its size in bytes.
        modified_ns: its modification time in nanoseconds.
    """

    path: str
    size: int
    modified_ns: int

    @classmethod
    def of_file(cls, path: str, file: int) -> ShardState:
        """Returns the current state of an open file."""
        status = os.fstat(file)
        return cls(path, status.st_size, status.st_mtime_ns)

    @classmethod
    def of_object(cls, url: str) -> ShardState:
        """Returns the current state of a file in a bucket. Raises OSError; see `stat_file`."""
        return cls(url, *stat_file(url))

    def check(self, file: int) -> None:
        """Raises OSError if an open file is not in this state."""
        if ShardState.of_file(self.path, file) != self:
            raise OSError(f"{self.path} has changed since it was indexed; start the command again")


class OpenShard:
    """A shard that is open for reading. It is closed when nothing refers to it any more.

    Raises:
        OSError: the file does not exist, is not a regular file, or cannot be read.
    """

    def __init__(self, path: str):
        self._file = -1
        try:
            check_file(path)
        except (MissingFileError, UnreadableFileError) as error:
            raise OSError(str(error)) from error
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def fileno(self) -> int:
        """Returns the file descriptor."""
        return self._file

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _OpenShards:
    """The shards that this process has read last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: collections.OrderedDict[ShardState, OpenShard] = collections.OrderedDict()

    def get(self, state: ShardState) -> OpenShard:
        """Returns an open shard."""
        with self._lock:
            shard = self._shards.get(state)
            if shard is not None:
                self._shards.move_to_end(state)
                return shard
        shard = OpenShard(state.path)
        with self._lock:
            self._shards[state] = shard
            if len(self._shards) > _MAX_OPEN:  # a thread that still reads it keeps it open
                self._shards.popitem(last=False)
        return shard


_OPEN_SHARDS = _OpenShards()


@dataclasses.dataclass(frozen=True, slots=True)
class TarImage:
    """An image in a tar file.

    Attributes:
        shard: the tar file.
        offset: position of the image, in bytes.
        size: size of the image, in bytes.
    """

    shard: ShardState
    offset: int
    size: int

    @property
    def block(self) -> ShardState:
        """The tar file."""
        return self.shard

    def __call__(self) -> bytes:
        """Returns the encoded image.

        In a bucket, where a look at the file would be another request, only a change of its length is noticed.

        Raises:
            OSError: the file does not exist any more, has changed or cannot be read.
        """
        if is_on_bucket(self.shard.path):
            content = read_range(self.shard.path, self.offset, self.offset + self.size)
            if len(content) < self.size:
                raise OSError(f"{self.shard.path} ends within the image")
            return content
        shard = _OPEN_SHARDS.get(self.shard)
        self.shard.check(shard.fileno())
        content = os.pread(shard.fileno(), self.size, self.offset)
        while len(content) < self.size:
            part = os.pread(shard.fileno(), self.size - len(content), self.offset + len(content))
            if not part:
                raise OSError(f"{self.shard.path} ends within the image")
            content += part
        return content
