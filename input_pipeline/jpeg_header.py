"""Size, orientation and scans of a JPEG, parsed from its header because Pillow takes much longer to open the file.

Most JPEGs have one scan, and are decoded a few rows at a time. If there are several scans, as in progressive JPEGs, the
decoder keeps the coefficients of the whole image in memory and visits all of them in each scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SCAN_MARKER = b"\xff\xda"
_START = b"\xff\xd8\xff"
_EXIF, _XMP, _MULTI_PICTURE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers; the others are tables
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_APP1, _APP2, _START_OF_SCAN = 0xE1, 0xE2, 0xDA
_MAX_SEGMENTS = 10_000  # before the first scan; a hundred times as many as cameras write
_COEFFICIENT_BYTES = 2
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[0-9]')
_ORIENTATION_TAG, _SHORT = 0x0112, 3  # of the TIFF structure in an EXIF block


class JpegScans(NamedTuple):
    """The number of scans of a JPEG, and the memory for its coefficients, 0 bytes if there is only one scan."""

    count: int
    coefficient_bytes: int


ONE_SCAN = JpegScans(1, 0)


class JpegHeader(NamedTuple):
    """Width and height in pixels, as stored; the EXIF orientation, 1 if there is none; and the scans."""

    width: int
    height: int
    orientation: int
    scans: JpegScans = ONE_SCAN


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


def read_jpeg_scans(data: bytes) -> JpegScans | None:
    """Parses the scans of any JPEG; returns None if its header is damaged.

    Args:
        data: the whole file, or its start, whose scans are counted.
    """
    frame = None
    try:
        for marker, start, end in _find_segments(data):
            if marker in _START_OF_FRAME:
                frame = _parse_frame(marker, data[start:end])
            elif marker == _START_OF_SCAN and frame is not None:
                return _count_scans(data, frame, start)
    except (IndexError, _UnusualHeaderError):
        pass
    return None


def count_coefficient_bytes(width: int, height: int, sampling: Sequence[tuple[int, int]]) -> int:
    """Returns the memory for the coefficients of an image, given the sampling factors of its components."""
    largest = max(horizontal for horizontal, _ in sampling) * max(vertical for _, vertical in sampling)
    samples = sum(horizontal * vertical for horizontal, vertical in sampling)
    return _COEFFICIENT_BYTES * samples * width * height // largest


class _UnusualHeaderError(Exception):
    """A header that Pillow should read."""


class _Frame(NamedTuple):
    """A frame header: marker, bits per sample, size in pixels, and the sampling factors of each component."""

    marker: int
    precision: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]


def _parse(data: bytes) -> JpegHeader:
    frame, scans, exif, xmp = None, None, b"", b""
    for marker, start, end in _find_segments(data):
        if marker in _START_OF_FRAME:
            frame = _parse_frame(marker, data[start:end])
        elif marker == _APP1 and data.startswith(_EXIF, start, end):
            if exif:  # split over several segments
                raise _UnusualHeaderError
            exif = data[start + len(_EXIF) : end]
        elif marker == _APP1 and data.startswith(_XMP, start, end):
            xmp = data[start:end]
        elif marker == _APP2 and data.startswith(_MULTI_PICTURE, start, end):
            raise _UnusualHeaderError
        elif marker == _START_OF_SCAN and frame is not None:
            scans = _count_scans(data, frame, start)
    if scans is None or frame.precision != 8 or len(frame.sampling) not in (1, 3):
        raise _UnusualHeaderError
    orientation = _parse_orientation(exif) if exif else None
    if orientation is None and _XMP_ORIENTATION.search(xmp):
        raise _UnusualHeaderError
    return JpegHeader(frame.width, frame.height, orientation or 1, scans)


def _find_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of the content of each segment, up to the header of the first scan."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        marker = data[position + 1]
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
        if marker == _START_OF_SCAN:
            return
    raise _UnusualHeaderError


def _parse_frame(marker: int, segment: bytes) -> _Frame:
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    # Each component has an id, two sampling factors of four bits, and the number of its quantisation table.
    sampling = tuple((segment[start] >> 4, segment[start] & 15) for start in range(7, 6 + 3 * segment[5], 3))
    if not width or not height or not sampling or min(map(min, sampling)) < 1:
        raise _UnusualHeaderError
    return _Frame(marker, segment[0], width, height, sampling)


def _count_scans(data: bytes, frame: _Frame, start: int) -> JpegScans:
    """Counts the scans, the first of whose headers starts at `start`."""
    if frame.marker not in _PROGRESSIVE and data[start] >= len(frame.sampling):  # one scan has all components
        return ONE_SCAN
    # Within a scan, 0xff is followed by 0 or by the number of a restart marker.
    count = 1 + data.count(SCAN_MARKER, start)
    return JpegScans(count, count_coefficient_bytes(frame.width, frame.height, frame.sampling))


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
