"""Errors of disks: full, over a quota, read-only, without permission, broken.

Libraries report them in exceptions of any type. `find_disk_fault` recognises them by the error number, or by the text
of the operating system in the message, and `reported_disk_faults` replaces them by an error of one line.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.errors import StorageError, UserError
from input_pipeline.files import is_on_bucket

# Error number -> the remedy.
_REMEDIES = {
    errno.ENOSPC: "free space, then run the same command again",
    errno.EDQUOT: "free space, then run the same command again",
    errno.EFBIG: "raise the size limit of files (`ulimit -f`), then run the same command again",
    errno.EROFS: "mount the disk for writing, or use another folder",
    errno.EACCES: "change the permissions, or use another folder",
    errno.EPERM: "change the permissions, or use another folder",
    errno.EIO: "check the disk, then run the same command again",
    errno.ESTALE: "mount the network disk again, then run the same command again",
    errno.ENOTCONN: "mount the network disk again, then run the same command again",
}
log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Faults that are also recognised by their text in messages, and in an error during whose handling another was raised.
_UNMISTAKABLE = {os.strerror(number): number for number in (*_FULL, errno.EROFS, errno.EIO)}
_PATH = re.compile(r"(?<![\w/.])/[^\s'\"`,;:()\[\]]+")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # by NumPy, which does not report the reason


@dataclass(frozen=True)
class DiskFault:
    """A fault of a disk.

    Attributes:
        number: error number of the operating system.
        path: the file or folder; "" if unknown.
    """

    number: int
    path: str

    @property
    def is_full(self) -> bool:
        """Whether there is no space, on the disk or within a quota."""
        return self.number in _FULL

    def describe(self, needed_bytes: int = 0) -> str:
        """Returns one line that says what is wrong where, how much space is needed if it is known, and the remedy."""
        problem = os.strerror(self.number)
        if self.is_full:
            needed = f"about {format_bytes(needed_bytes)} are needed" if needed_bytes else ""
            details = ", ".join(detail for detail in (needed, _describe_free_space(self.path)) if detail)
            problem += f" ({details})" if details else ""
        return f"{self.path}: {problem}: {_REMEDIES[self.number]}".removeprefix(": ")


def find_disk_fault(error: BaseException) -> DiskFault | None:
    """Returns the fault of a disk that is the cause of an error; None if there is none."""
    chain = list(_walk(error))
    for cause, is_context in chain:
        number = _find_number(cause)
        if number in _UNMISTAKABLE.values() or (number is not None and not is_context):
            paths = (_find_path(candidate) for candidate in (cause, *(other for other, _ in chain)))
            return DiskFault(number, next((path for path in paths if path), ""))
    return None


@contextlib.contextmanager
def reported_disk_faults(
    find_needed_bytes: Callable[[str], int] = lambda path: 0, folder: str | os.PathLike[str] = ""
) -> Iterator[None]:
    """Replaces errors in the `with` block that are caused by a fault of a disk.

    Args:
        find_needed_bytes: returns the size of the file that is written to a path; 0 if unknown.
        folder: named by the message if the error does not name a file.

    Raises:
        StorageError: the fault.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fault = find_disk_fault(error)
        if fault is None:
            raise
        fault = DiskFault(fault.number, fault.path or os.fspath(folder))
        raise StorageError(fault.describe(find_needed_bytes(fault.path))) from error


class OptionalOutput(contextlib.AbstractContextManager["OptionalOutput"]):
    """A context manager for output that nothing depends on: a fault of a disk is logged as a warning and not raised.

    Args:
        consequence: what is missing, for the warning, such as "the report is not written".

    Attributes:
        has_failed: whether there was a fault. It is logged only once.
    """

    def __init__(self, consequence: str):
        self._consequence = consequence
        self.has_failed = False

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        fault = find_disk_fault(error) if isinstance(error, Exception) and not isinstance(error, UserError) else None
        if fault is not None and not self.has_failed:
            self.has_failed = True
            log.warning("%s (%s)", self._consequence, fault.describe())
        return fault is not None


def format_bytes(count: float) -> str:
    """Formats a number of bytes, such as "12 kB", "3.4 MB" or "1.20 GB"."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _find_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        # A connection that is refused is not a disk, and has no file name.
        return error.errno if error.errno != errno.ENOTCONN or error.filename else None
    message = str(error)
    if isinstance(error, OSError) and error.errno is None and _SHORT_WRITE.search(message):
        return errno.ENOSPC
    return next((number for text, number in _UNMISTAKABLE.items() if text in message), None)


def _find_path(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    match = _PATH.search(str(error))
    return match[0].rstrip(".") if match else ""


def _walk(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yields an error, its causes and contexts, and the members of groups, and whether each is (part of) a context."""
    pending, seen = [(error, False)], set()
    while pending:
        current, is_context = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current, is_context
        if isinstance(current, BaseExceptionGroup):
            pending.extend((member, is_context) for member in current.exceptions)
        if current.__cause__ is not None:
            pending.append((current.__cause__, is_context))
        if current.__context__ is not None and not current.__suppress_context__:
            pending.append((current.__context__, True))


def _describe_free_space(path: str) -> str:
    """Returns how much of the disk of a path is free; "" if unknown."""
    if os.sep not in path or is_on_bucket(path):  # not a file, such as the standard output
        return ""
    existing = next((folder for folder in (Path(path), *Path(path).absolute().parents) if folder.exists()), None)
    if existing is None:
        return ""
    usage = shutil.disk_usage(existing)
    return f"{format_bytes(usage.free)} of {format_bytes(usage.total)} are free"
