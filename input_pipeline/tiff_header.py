"""Number of values in the tags of a TIFF, which are converted to Python objects when the file is opened."""

from __future__ import annotations

import struct
from typing import BinaryIO

_SMALL_TYPES = (1, 2, 6, 7)  # bytes and text, which are not converted one by one


def count_tag_values(file: BinaryIO) -> int:
    """Returns the largest number of values of a tag in the first directory of a TIFF; 0 if the header is damaged.

    Args:
        file: the file, at its start.
    """
    try:
        return max(_read_counts(file), default=0)
    except (struct.error, OverflowError):
        return 0


def _read_counts(file: BinaryIO) -> list[int]:
    header = file.read(16)
    order = "<" if header.startswith(b"II") else ">"
    is_big = 43 in header[2:4]  # BigTIFF has 64-bit offsets
    (offset,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}L", header, 8 if is_big else 4)
    file.seek(offset)
    number, entry = (f"{order}Q", f"{order}HHQQ") if is_big else (f"{order}H", f"{order}HHLL")
    (entries,) = struct.unpack(number, file.read(struct.calcsize(number)))
    size = struct.calcsize(entry)
    directory = file.read(min(entries, 2**16) * size)
    tags = struct.iter_unpack(entry, directory[: len(directory) // size * size])
    return [count for _, kind, count, _ in tags if kind not in _SMALL_TYPES]
