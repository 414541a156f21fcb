"""The members of a tar file, with their offsets, for random access. Damaged headers are reported and skipped.

The `tarfile` module stops at a damaged header without saying so. Here, the search goes on at the next valid header, so
one damaged block does not cost the rest of a shard.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE  # bytes
_CHUNK = 2**18  # bytes per read while searching for a header
_MAX_EXTENSION = 2**16  # bytes of a long name, or of a PAX header, that are read
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LONG_NAME, _PAX = tarfile.GNUTYPE_LONGNAME, (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_IGNORED = (tarfile.DIRTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, b"V")  # b"V": name of a volume

OnProblem = Callable[[str, str], None]  # receives the kind and a description


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
        name: path in the tar file; bytes that are not UTF-8 are surrogates, as in names of files.
        offset: position of its content, in bytes.
        size: size of its content, in bytes.
    """

    name: str
    offset: int
    size: int


def read_members(file: int, on_problem: OnProblem) -> Iterator[Member]:
    """Yields the complete regular files of a tar file in order, reading only their headers.

    Args:
        file: file descriptor.
        on_problem: receives damaged and truncated members, links and devices, and a missing end of the archive.

    Raises:
        OSError: the file cannot be read.
    """
    end = os.fstat(file).st_size
    position, has_members, changes = 0, False, {}
    while True:
        position, header, is_skipped = _find_next(file, position, end, has_members, on_problem)
        if header is None:
            break
        has_members, content = True, position + BLOCK
        changes = {} if is_skipped else changes
        if header.type in _PAX or header.type == _LONG_NAME:
            changes |= _parse_extension(header, os.pread(file, min(header.size, _MAX_EXTENSION), content))
            position = content + _pad(header.size)
            continue
        name, size = changes.get("name", header.name), changes.get("size", header.size)
        changes = {}
        if content + size > end:
            on_problem("truncated members", f"{name} at byte {position}: {end - content:,} of {size:,} bytes")
            return
        if header.type in _FILES:
            yield Member(name, content, size)
        elif header.type not in _IGNORED:
            on_problem("members that are not regular files", f"{name} at byte {position}")
        position = content + _pad(size)
    if not end:
        on_problem("empty shards", "0 bytes")
    elif not is_skipped:
        on_problem("shards without an end", f"it may be truncated: no block of zeros at byte {end}")


def _find_next(
    file: int, position: int, end: int, has_members: bool, on_problem: OnProblem
) -> tuple[int, tarfile.TarInfo | None, bool]:
    """Returns the position of the next header, the header or None, and whether zeros or damage were skipped.

    Zeros are the end of an archive, which others can follow in a file that was joined from several.
    """
    is_skipped = False
    while position < end:
        block = os.pread(file, BLOCK, position)
        if block.strip(b"\0"):
            header = _parse_header(block)
            if header is not None:
                return position, header, is_skipped
            after = _find_header(file, position + BLOCK, end)
            _report_damage(position, after, end, block, is_first=not has_members, on_problem=on_problem)
            position = after
        else:
            position = _skip_zeros(file, position, end)
        is_skipped = True
    return end, None, is_skipped


def _report_damage(start: int, stop: int, end: int, block: bytes, *, is_first: bool, on_problem: OnProblem) -> None:
    if block.startswith(b"\x1f\x8b") and start == 0:
        on_problem("compressed shards", "there is no random access to a compressed file; decompress it with gunzip")
    elif is_first and stop == end:
        on_problem("files that are not tar files", "no valid header of a member")
    else:
        on_problem("members with a damaged header", f"bytes {start} to {stop} are skipped")


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _pad(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _skip_zeros(file: int, position: int, end: int) -> int:
    """Returns the position of the first block that is not zero, or `end`."""
    while position < end:
        chunk = os.pread(file, _CHUNK, position)
        if not chunk:
            return end
        if chunk.count(0) == len(chunk):
            position += len(chunk)
            continue
        return min(position + (len(chunk) - len(chunk.lstrip(b"\0"))) // BLOCK * BLOCK, end)
    return end


def _find_header(file: int, position: int, end: int) -> int:
    """Returns the position of the next valid header, or `end`."""
    while position < end:
        chunk = os.pread(file, _CHUNK, position)
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            # Almost all blocks of images lack the signature, which is compared faster than a checksum is computed.
            if chunk[start + 257 : start + 262] == b"ustar" and _parse_header(chunk[start : start + BLOCK]):
                return position + start
        if len(chunk) < _CHUNK:
            return end
        position += len(chunk)
    return end


def _parse_extension(header: tarfile.TarInfo, content: bytes) -> dict[str, str | int]:
    """Returns the name and size in the header of the next member that a long name or a PAX header replaces."""
    if header.type == _LONG_NAME:
        return {"name": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    changes: dict[str, str | int] = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            return changes
        record = rest[: int(length) - len(length) - 1].removesuffix(b"\n")
        content = content[int(length) :]
        key, _, value = record.partition(b"=")
        if key == b"path":
            changes["name"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            changes["size"] = int(value)
    return changes
