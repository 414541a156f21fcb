"""Zip archives from strangers, whose contents are read only up to a limit."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from caption_jax.errors import WeightsError

# Errors of `zipfile` for damaged archives, also those that it takes for encrypted or of a newer version.
ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, NotImplementedError, RuntimeError),
    UnicodeDecodeError,
)

_MAX_DIRECTORY_BYTES = 2**24  # about 200,000 members
_MAX_EXPANSION = 10  # weights hardly get smaller by compression; PyTorch and Keras do not compress them
_FREE_BYTES = 2**24  # an archive up to this size may expand more
_TAIL_BYTES = 2**16 + 2**8  # contains the end of the directory


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive, after checking the sizes that it declares.

    Raises:
        WeightsError: its contents are many times as large as the file, or it has too many members.
        zipfile.BadZipFile: the file is damaged.
    """
    size = path.stat().st_size
    if _directory_bytes(path, size) > _MAX_DIRECTORY_BYTES:
        raise WeightsError(f"{path}: the zip archive has too many members for a weight file; download it again")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > _MAX_EXPANSION * size + _FREE_BYTES:
            raise WeightsError(
                f"{path}: the zip archive of {size / 1e6:,.1f} MB declares {unpacked / 1e6:,.0f} MB of contents, so it "
                "is not a weight file or is damaged; download it again"
            )
        yield archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Reads a member of an archive.

    Raises:
        WeightsError: it is larger than `limit` bytes.
        KeyError: there is no such member.
    """
    size = archive.getinfo(name).file_size
    if size > limit:
        raise WeightsError(
            f"{archive.filename}: {name} has {size / 1e6:,.1f} MB, more than the {limit / 1e6:,.1f} MB that are allowed"
        )
    return archive.read(name)


def _directory_bytes(path: Path, size: int) -> int:
    """Returns the size of the list of members, which is read as a whole, as declared at the end of the file."""
    with path.open("rb") as file:
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    large_end = end - 20 - 56  # of archives with more than 4 GB, followed by a pointer of 20 bytes
    sizes = [0]
    if end >= 0 and len(tail) >= end + 16:
        sizes += struct.unpack_from("<I", tail, end + 12)
    if large_end >= 0 and tail[large_end : large_end + 4] == b"PK\6\6":
        sizes = list(struct.unpack_from("<Q", tail, large_end + 40))
    return max(sizes)
