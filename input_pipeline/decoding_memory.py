"""Memory of image decoders: estimates from headers, and a budget that images which are decoded at the same time share.

The estimates are upper bounds of what libjpeg-turbo, Pillow, pillow-heif and their libraries allocate per pixel;
tests/faults/test_image_memory.py compares them with measurements.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, ImageFile

from input_pipeline.jpeg_header import ONE_SCAN, JpegScans

SMALL_BYTES = 16 * 2**20  # images that need less are decoded without waiting for others

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of Pillow's images, by mode
_OTHER_MODES = 4
# Bytes per pixel of buffers inside the decoders, by format. Those of JPEG and TIFF depend on the file.
_DECODER_BYTES_PER_PIXEL = {"WEBP": 14, "AVIF": 18, "HEIF": 8, "JPEG2000": 22}
_HIGH_BIT_DEPTH = 10  # more, for HEIC with more than 8 bits per sample
_TILE_WIDTH, _TILE_LENGTH, _TILE_PIXEL_BYTES = 322, 323, 8  # tags of TIFF, and bytes of four samples of 16 bits


def estimate_jpeg(width: int, height: int, scans: JpegScans, factor: int) -> int:
    """Returns the memory that decoding a JPEG takes, in bytes.

    Args:
        width: width in pixels.
        height: height in pixels.
        scans: the scans of the file.
        factor: factor by which the decoder reduces the image.
    """
    return scans.coefficient_bytes + _OTHER_MODES * -(-width // factor) * -(-height // factor)


def estimate_image(image: Image.Image, scans: JpegScans = ONE_SCAN, factor: int = 1) -> int:
    """Returns the memory that decoding an image takes, in bytes, without its file; 0 if it is in memory.

    Args:
        image: an image of which only the header has been read.
        scans: the scans of a JPEG.
        factor: factor by which the decoder reduces the image if it is a JPEG.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return 0
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        return estimate_jpeg(width, height, scans, factor if image.format == "JPEG" else 1)
    per_pixel = _BYTES_PER_PIXEL.get(image.mode, _OTHER_MODES) + _DECODER_BYTES_PER_PIXEL.get(image.format, 0)
    size = per_pixel * width * height
    if image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
        size += _HIGH_BIT_DEPTH * width * height
    if image.format == "TIFF":
        size += _TILE_PIXEL_BYTES * image.tag_v2.get(_TILE_WIDTH, 0) * image.tag_v2.get(_TILE_LENGTH, 0)
    return size


class DecodingBudget:
    """Memory that is shared by all images that a process decodes at the same time. Thread-safe.

    The total is an argument of `reserve`, because models in one process may have different limits.
    """

    def __init__(self):
        self._used = 0
        self._changed = threading.Condition()
        self._next = (
            threading.Lock()
        )  # held by the one image that waits for memory, so that large images get their turn
        self._processes = 1
        self._lock_file: BinaryIO | None = None

    def share_with_processes(self, processes: int, lock_file: BinaryIO) -> None:
        """Shares the total with other processes, each of which decodes one image at a time.

        An image that needs more than an equal share is decoded while the other processes decode small images only.

        Args:
            processes: number of processes, including this one.
            lock_file: a file that all processes have open, for locks.
        """
        self._processes, self._lock_file = processes, lock_file

    @contextlib.contextmanager
    def reserve(self, size: int, total: int) -> Iterator[None]:
        """Waits until an image can be decoded, and reserves its memory inside the `with` block. Must not be nested.

        Args:
            size: memory that the image takes, in bytes, at most `total`. Nothing is reserved for small images.
            total: memory of all images that are decoded at the same time, in bytes.
        """
        if size <= SMALL_BYTES:
            yield
            return
        with self._next, self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= total)
            self._used += size
        try:
            with self._lock_processes(exclusively=size > total // self._processes):
                yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    @contextlib.contextmanager
    def _lock_processes(self, *, exclusively: bool) -> Iterator[None]:
        if self._lock_file is None:
            yield
            return
        import fcntl  # not on Windows, which has no decoding processes

        fcntl.lockf(self._lock_file, fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH)  # released if the process ends
        try:
            yield
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN)


BUDGET = DecodingBudget()
