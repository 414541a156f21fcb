"""Atomic file writes. This module imports nothing from this repository, because both packages use it."""

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
    """Replaces a file atomically: readers see the old or the new content, even if the process is killed.

    On a local disk, the content is written to a temporary file in the same folder, flushed to disk and renamed. The
    temporary name is unique, so several processes can write the same file. Objects in a bucket cannot be renamed, but
    they become visible only when they are complete.

    Args:
        path: local file or object in a bucket; its folder must exist.
        content: bytes, text (written as UTF-8), or a function that writes to a binary file.

    Raises:
        OSError: the file cannot be written. An existing file is unchanged.
    """
    if is_on_bucket(path):
        from etils import epath  # imported lazily: local paths do not need it

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
