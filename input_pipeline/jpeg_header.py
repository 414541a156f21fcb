"""Size and orientation of a JPEG, parsed from its header, because opening the file with Pillow takes much longer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_START = b"\xff\xd8\xff"
_EXIF, _XMP, _MULTI_PICTURE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers; the others are tables
_APP1, _APP2, _START_OF_SCAN = 0xE1, 0xE2, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[0-9]')
_ORIENTATION_TAG, _SHORT = 0x0112, 3  # of the TIFF structure in an EXIF block


class JpegHeader(NamedTuple):
    """Width and height in pixels, as stored, and the EXIF orientation, 1 if there is none."""

    width: int
    height: int
    orientation: int


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Parses the header of an encoded image.

    Args:
        data: the whole file.

    Returns:
        The header, or None for everything that is not an RGB or grayscale JPEG of 8 bits, or that is unusual: damaged
        headers, several pictures in one file, and orientations in XMP or of an unexpected type.
    """
    if not data.startswith(_START):
        return None
    try:
        return _parse(data)
    except (IndexError, _UnusualHeaderError):
        return None


class _UnusualHeaderError(Exception):
    """A header that Pillow should read."""


def _parse(data: bytes) -> JpegHeader:
    size, exif, xmp = None, b"", b""
    for marker, start, end in _find_segments(data):
        if marker in _START_OF_FRAME:
            size = _parse_frame(data[start:end])
        elif marker == _APP1 and data.startswith(_EXIF, start, end):
            if exif:  # split over several segments
                raise _UnusualHeaderError
            exif = data[start + len(_EXIF) : end]
        elif marker == _APP1 and data.startswith(_XMP, start, end):
            xmp = data[start:end]
        elif marker == _APP2 and data.startswith(_MULTI_PICTURE, start, end):
            raise _UnusualHeaderError
    if size is None:
        raise _UnusualHeaderError
    orientation = _parse_orientation(exif) if exif else None
    if orientation is None and _XMP_ORIENTATION.search(xmp):
        raise _UnusualHeaderError
    return JpegHeader(*size, orientation or 1)


def _find_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of the content of each segment before the pixels."""
    position = 2
    while (marker := data[position + 1]) != _START_OF_SCAN:
        if data[position] != 0xFF:
            raise _UnusualHeaderError
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _WITHOUT_LENGTH or length < 2:
            raise _UnusualHeaderError
        start, position = position + 4, position + 2 + length
        yield marker, start, position


def _parse_frame(segment: bytes) -> tuple[int, int]:
    """Returns the width and height in a frame header, if it has 8 bits and one or three components."""
    precision, components = segment[0], segment[5]
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if precision != 8 or components not in (1, 3) or not width or not height:
        raise _UnusualHeaderError
    return width, height


def _parse_orientation(tiff: bytes) -> int | None:
    """Returns the orientation in the first directory of an EXIF block; None if there is none."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        raise _UnusualHeaderError
    directory = int.from_bytes(tiff[4:8], order)
    entries = directory + 2
    count = int.from_bytes(tiff[directory:entries], order)
    if len(tiff) < entries + 12 * count:
        raise _UnusualHeaderError
    tag = _ORIENTATION_TAG.to_bytes(2, order)
    for entry in range(entries, entries + 12 * count, 12):
        if tiff.startswith(tag, entry):
            kind, number = int.from_bytes(tiff[entry + 2 : entry + 4], order), tiff[entry + 4 : entry + 8]
            if kind != _SHORT or int.from_bytes(number, order) != 1:
                raise _UnusualHeaderError
            return int.from_bytes(tiff[entry + 8 : entry + 10], order)
    return None
