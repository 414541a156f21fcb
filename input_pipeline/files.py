"""Files that a reader sees complete or not at all; no imports of ours, so that either package may use it."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

Content = bytes | str | Callable[[BinaryIO], object]


def is_on_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme, such as `gs://bucket/run`; such a path is absolute and must not be resolved."""
    return "://" in os.fspath(path)


def write_atomically(path: str | os.PathLike[str], content: Content) -> None:
    """Replaces a file at once: whoever reads it gets the old content or the new one, also after a kill.

    On a local disk the content goes to a temporary file of a name of its own in the same folder (so several processes
    may write one file), is flushed to the disk and renamed. A bucket has no rename, but shows an object when all of it
    has arrived.

    Args:
        path: of the file, local or on a bucket; its folder exists.
        content: bytes, text (written as UTF-8), or a function that writes to a binary file.

    Raises:
        OSError: the file cannot be written. The one that was there is unchanged.
    """
    if is_on_bucket(path):
        from etils import epath  # not needed by those who write to local disks only

        buffer = io.BytesIO()
        _write(buffer, content)
        epath.Path(path).write_bytes(buffer.getvalue())
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write(file: BinaryIO, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)
