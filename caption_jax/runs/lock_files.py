"""Files that only one of several processes can create, on local and network disks and in buckets.

`flock` is not used, because some network file systems ignore it or apply it to one host only.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from input_pipeline.files import is_on_bucket, write_atomically


def create_exclusively(file: epath.Path, content: str) -> bool:
    """Creates a file with its complete content, unless it exists.

    Args:
        file: the file; its folder must exist.
        content: text that no other process would write, because the file is read again: a request that was repeated
            after a lost reply may report that the file already exists.

    Returns:
        Whether this call created the file.

    Raises:
        OSError: the file cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        if is_on_bucket(file):
            _get_client(file).pipe_file(os.fspath(file), content.encode(), mode="create")
        else:
            _link_exclusively(file, content)
    return read_if_exists(file) == content


def read_if_exists(file: epath.Path) -> str | None:
    """Returns the content of a file, or None if it does not exist."""
    try:
        return file.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def renew(file: epath.Path, content: str) -> None:
    """Sets the modification time of a file to the present. `content` is its content, which a bucket needs again."""
    if is_on_bucket(file):
        write_atomically(file, content)
    else:
        os.utime(file)


def seconds_since_renewal(file: epath.Path) -> float:
    """Returns the age of a file by the clock of the disk or bucket, which may differ from that of this host.

    Raises:
        OSError: the file does not exist, or its folder is not writable.
    """
    with _probe(file) as probe:
        if is_on_bucket(file):
            client = _get_client(file)
            return (client.modified(os.fspath(probe)) - client.modified(os.fspath(file))).total_seconds()
        with file.open("rb") as opened:  # opening a file on a network disk updates the cached attributes
            return os.stat(probe).st_mtime - os.fstat(opened.fileno()).st_mtime


def identify_folder(folder: epath.Path) -> tuple[int, int] | bool:
    """Returns a value that changes if a folder is deleted, even if another thread creates it again.

    In a bucket, it only tells whether the folder has files.
    """
    if is_on_bucket(folder):
        return folder.exists()
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return False
    return status.st_dev, status.st_ino


def _link_exclusively(file: epath.Path, content: str) -> None:
    """Links a complete temporary file to `file`. Raises FileExistsError if it exists."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "x", encoding="utf-8") as target:
            target.write(content)
        try:
            os.link(temporary, file)
        except FileExistsError:
            raise
        except OSError:  # the file system has no hard links
            with open(file, "x", encoding="utf-8") as target:
                target.write(content)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(file), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _probe(file: epath.Path) -> Iterator[epath.Path]:
    """Creates a temporary file next to `file`."""
    probe = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    write_atomically(probe, "probe")
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _get_client(file: epath.Path) -> Any:
    import fsspec  # epath accesses buckets through it; checked by `check_storage`

    return fsspec.filesystem(str(file).partition("://")[0])
