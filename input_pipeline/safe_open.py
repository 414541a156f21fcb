"""The place where files from strangers are opened: images, captions, splits, results, tokenizers and weights.

A path in a caption file can name a pipe, on which a read waits forever, a device, which has no end, or a file of the
system. Only regular files up to a maximum size are opened. Error messages name the file but never quote its content,
because it may be a file that the sender of a dataset must not see.

`DataRoot` decides about files outside of the folder of a dataset.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.files import is_on_bucket, normalise_path, storage_path
from input_pipeline.terminal_text import escape

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# O_NONBLOCK: opening a pipe that replaces the file after the check must not wait for a writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)


class UnreadableFileError(DataError):
    """A file that cannot be opened or is not safe to open, with its `path` and the `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)} {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self):
        return UnreadableFileError, (self.path, self.reason)


def read_file(path: str | os.PathLike[str], max_bytes: int, key: str = "") -> bytes:
    """Returns the content of a regular file, or of an object in a bucket.

    Args:
        path: the file.
        max_bytes: maximum size.
        key: config key of the maximum size, for the message.

    Raises:
        MissingFileError: the file does not exist.
        UnreadableFileError: it is not a regular file, is larger than `max_bytes`, or cannot be read.
    """
    if is_on_bucket(path):
        return _read_object(path, max_bytes, key)
    descriptor = _open(path, max_bytes, key)
    try:
        size = os.fstat(descriptor).st_size
        parts = [os.read(descriptor, size + 1)]
        total = len(parts[0])
        while parts[-1] and total <= max_bytes:  # until the end; files of /proc have a size of 0
            parts.append(os.read(descriptor, max(size + 1 - total, 1 << 16)))
            total += len(parts[-1])
        if total > max_bytes:
            raise UnreadableFileError(path, _describe_excess(total, max_bytes, key))
        return parts[0] if len(parts) <= 2 else b"".join(parts)
    except OSError as error:
        raise UnreadableFileError(path, _describe_os_error(error)) from None
    finally:
        os.close(descriptor)


def read_start(path: str | os.PathLike[str], count: int) -> bytes:
    """Returns the first `count` bytes of a regular file on a local disk, or less if the file is shorter.

    Raises:
        MissingFileError: the file does not exist.
        UnreadableFileError: it is not a regular file, or cannot be read.
    """
    descriptor = _open(path)
    try:
        return os.read(descriptor, count)
    except OSError as error:
        raise UnreadableFileError(path, _describe_os_error(error)) from None
    finally:
        os.close(descriptor)


def open_file(
    path: str | os.PathLike[str], max_bytes: int | None = None, key: str = "", *, buffering: int = -1
) -> BinaryIO:
    """Opens a regular file on a local disk for reading; see `read_file` for the arguments and errors, and `open`."""
    return os.fdopen(_open(path, max_bytes, key), "rb", buffering)


def check_file(path: str | os.PathLike[str], max_bytes: int | None = None, key: str = "") -> None:
    """Checks a file on a local disk that a library will open; see `read_file` for the arguments and errors."""
    os.close(_open(path, max_bytes, key))


def _open(path: str | os.PathLike[str], max_bytes: int | None = None, key: str = "") -> int:
    """Returns a file descriptor. The file is checked before it is opened, because opening a device may have effects."""
    try:
        _check_status(path, os.stat(path), max_bytes, key)
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {os.fspath(path)}") from None
    except OSError as error:
        raise UnreadableFileError(path, _describe_os_error(error)) from None
    except UnreadableFileError:
        raise
    except ValueError:
        raise UnreadableFileError(path, "cannot be a file: its name contains a null character") from None
    try:
        _check_status(path, os.fstat(descriptor), max_bytes, key)
    except UnreadableFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check_status(path: str | os.PathLike[str], status: os.stat_result, max_bytes: int | None, key: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(path, f"is {describe_kind(status.st_mode)}, not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UnreadableFileError(path, _describe_excess(status.st_size, max_bytes, key))


def describe_kind(mode: int) -> str:
    """Returns what a file is that is not a regular one, such as "a named pipe", from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _describe_excess(size: int, max_bytes: int, key: str) -> str:
    return f"has {size:,} bytes, more than the limit of {max_bytes:,}" + (f" ({key})" if key else "")


def _describe_os_error(error: OSError) -> str:
    if error.errno == errno.EISDIR:
        return "is a folder, not a regular file"
    return f"cannot be read: {error.strerror or type(error).__name__}"


def _read_object(path: str | os.PathLike[str], max_bytes: int, key: str) -> bytes:
    file = storage_path(path)
    try:
        size = file.stat().length
        if size > max_bytes:
            raise UnreadableFileError(path, _describe_excess(size, max_bytes, key))
        return file.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {os.fspath(path)}") from None


class DataRoot:
    """The folder of a dataset, and the files outside of it that its own files name.

    Paths with `..` that leave the folder are always refused. Links and absolute paths may lead outside if `outside` is
    "follow"; such files are counted for one line of the log.

    Args:
        folder: the folder.
        others: further folders that the user named.
        outside: "follow" or "refuse" files outside of all folders.
    """

    def __init__(self, folder: str | os.PathLike[str], others: Iterable[str | os.PathLike[str]] = (), outside="follow"):
        self.folder = storage_path(folder) if is_on_bucket(folder) else Path(folder)
        self.outside = outside
        folders = [os.path.abspath(path) for path in (folder, *others)]
        self._folders = tuple({*folders, *map(os.path.realpath, folders)})
        self._exits: dict[str, str] = {}  # results of `find_exit` by folder
        self._counts: Counter[str] = Counter()
        self._example = ""

    def normalise(self, path: str | os.PathLike[str]) -> Path | None:
        """Returns a path without `..`; None if `..` leaves the folder of the dataset.

        `..` is removed from the text of the path, so a link before it is not followed.
        """
        normal = normalise_path(path)
        return type(self.folder)(normal) if self._contains(os.path.abspath(normal)) else None

    def find_exit(self, path: str | os.PathLike[str], *, is_link: bool = True) -> str:
        """Returns how a path leaves the folder: "absolute paths", "links", or "" if it does not.

        Args:
            path: path of an existing file.
            is_link: whether the file itself may be a link, in addition to the folders in its path.
        """
        parent = os.path.dirname(path)
        if parent not in self._exits:
            absolute = os.path.abspath(parent)
            if not self._contains(absolute):
                self._exits[parent] = "absolute paths"
            else:
                self._exits[parent] = "" if self._contains(os.path.realpath(absolute)) else "links"
        if self._exits[parent] or not is_link:
            return self._exits[parent]
        return "" if self._contains(os.path.realpath(path)) else "links"

    def admits(self, name: str, path: str | os.PathLike[str], *, is_link: bool = True) -> bool:
        """Returns whether a file may be read, and counts it if it is outside of the folder.

        Args:
            name: name of the file in the dataset, for the log.
            path: path of the file.
            is_link: see `find_exit`.
        """
        exit_kind = self.find_exit(path, is_link=is_link)
        if not exit_kind:
            return True
        self._counts[exit_kind] += self.outside == "follow"
        if not self._example:
            target = os.path.realpath(path)
            self._example = escape(name) + (f", which is {escape(target)}" if target != name else "")
        return self.outside == "follow"

    @property
    def has_outside_files(self) -> bool:
        """Whether files outside of the folder have been counted."""
        return any(self._counts.values())

    def __str__(self) -> str:
        """One line about the files outside of the folder."""
        total = sum(self._counts.values())
        kinds = " and ".join(sorted(self._counts))
        return (
            f"{kinds} lead to {total:,} {'file' if total == 1 else 'files'} outside of {escape(self.folder)}, such as "
            f"{self._example}"
        )

    def _contains(self, path: str) -> bool:
        return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._folders)
