"""Local paths and bucket URLs, and atomic file writes.

A path that may be on a bucket (`gs://bucket/run`) is an `epath.Path` made by `storage_path` or `absolute_path`. Its
`resolve` must not be called, because it would return a local path. Where only local files can be read, `local_path`
rejects a URL in one line.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from input_pipeline.errors import ConfigError
from input_pipeline.extras import select_bucket_backend

if TYPE_CHECKING:
    from etils import epath

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_STALE_SECONDS = 3600.0

Content = bytes | str | Callable[[BinaryIO], object]


def is_on_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme, such as `gs://bucket/run`; such a path is absolute and must not be resolved."""
    return "://" in os.fspath(path)


def storage_path(path: str | os.PathLike[str]) -> epath.Path:
    """Converts a local path or bucket URL to an `epath.Path`, without making it absolute.

    Raises:
        MissingPackageError: the package that accesses the bucket is not installed.
    """
    from etils import epath  # imported lazily: many local paths do not need it

    select_bucket_backend(path)
    return epath.Path(path)


def absolute_path(path: str | os.PathLike[str]) -> epath.Path:
    """Converts a local path or bucket URL to an absolute `epath.Path`. Bucket URLs are unchanged.

    Raises:
        MissingPackageError: see `storage_path`.
    """
    path = storage_path(path)
    return path if is_on_bucket(path) else path.resolve()


def normalise_path(path: str | os.PathLike[str]) -> str:
    """Returns a local path or bucket URL without `.`, `..` and repeated slashes, like `os.path.normpath`."""
    scheme, separator, rest = os.fspath(path).rpartition("://")
    return f"{scheme}{separator}{os.path.normpath(rest)}"


def local_path(path: str | os.PathLike[str], name: str, remedy: str = "") -> Path:
    """Converts the value of a config key or flag to a local path.

    Args:
        path: the value.
        name: the key or flag, for the error message.
        remedy: what to do about a bucket URL; by default, to mount the bucket or copy the files.

    Raises:
        ConfigError: `path` is on a bucket.
    """
    if is_on_bucket(path):
        remedy = remedy or "copy the files to a local disk, or mount the bucket (as with gcsfuse) and set that path"
        raise ConfigError(f"{name}={os.fspath(path)} is on a bucket, but must be a local path: {remedy}")
    return Path(path)


def write_atomically(path: str | os.PathLike[str], content: Content) -> None:
    """Replaces a file atomically: readers see the old or the new content, even if the process is killed.

    On a local disk, the content is written to a temporary file in the same folder, flushed to disk and renamed. The
    temporary name is unique, so several processes can write the same file. Objects in a bucket cannot be renamed, but
    they become visible only when they are complete.

    Args:
        path: local file or object in a bucket; its folder must exist.
        content: bytes, text (written as UTF-8), or a function that writes to a binary file.

    Raises:
        OSError: the file cannot be written; names `path`. An existing file is unchanged.
    """
    if is_on_bucket(path):
        buffer = io.BytesIO()
        _write(buffer, content)
        storage_path(path).write_bytes(buffer.getvalue())
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = os.fspath(target), None  # a write that fails does not name its file
        raise


def check_absent(folder: epath.Path) -> None:
    """Raises ConfigError if a folder that is to be written already exists."""
    if folder.exists():
        raise ConfigError(f"{folder} already exists: delete it, or write to another folder")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[epath.Path]:
    """Creates a folder that appears only when it is complete.

    On a local disk, the files are written to a temporary folder in the parent of `path`, which is renamed at the end,
    or deleted if the body raises. If a process was killed more than an hour ago, the next one deletes its folder. In a
    bucket, where folders cannot be renamed, each file appears when it is written, so the last one must be that without
    which the folder is not used.

    Args:
        path: local folder or folder in a bucket. Its parents are created.

    Yields:
        The folder to write to.

    Raises:
        ConfigError: `path` already exists.
        OSError: the folder cannot be created or renamed.
    """
    target = storage_path(path)
    check_absent(target)
    if is_on_bucket(path):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _delete_stale_folders(target)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _delete_stale_folders(target: epath.Path) -> None:
    """Deletes temporary folders that `new_folder` left because its process was killed."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):  # it is in use, or belongs to another user
            if _TEMPORARY.fullmatch(folder.name) and folder.stat().mtime < time.time() - _STALE_SECONDS:
                shutil.rmtree(folder)


def delete_stale_temporaries(folder: str | os.PathLike[str], depth: int = 1, seconds: float = _STALE_SECONDS) -> None:
    """Deletes temporary files that `write_atomically` left in a local folder because its process was killed.

    Younger files are kept, because another process may be writing them. Does nothing for a bucket.

    Args:
        folder: the folder, which may not exist.
        depth: number of levels of folders to search, 1 for the folder alone.
        seconds: age of the files to delete.
    """
    if is_on_bucket(folder) or depth == 0:
        return
    oldest = time.time() - seconds
    with contextlib.suppress(OSError):  # it does not exist, or is not writable
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                delete_stale_temporaries(entry.path, depth - 1, seconds)
            elif _TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(entry.path)


def _write(file: BinaryIO, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)
