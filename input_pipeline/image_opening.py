"""Opens images of all kinds without decoding them, and checks their headers against `Limits`.

Only the decoders of the formats in `image_formats.FORMATS` are used. Pillow has others, some of which start programs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from input_pipeline.decoding_memory import SMALL_BYTES
from input_pipeline.errors import ImageError, MissingFileError
from input_pipeline.image_formats import DECODERS, describe_refused, describe_unreadable, sniff_format
from input_pipeline.jpeg_header import ONE_SCAN, SCAN_MARKER, JpegScans, count_coefficient_bytes, read_jpeg_scans
from input_pipeline.limits import Limits
from input_pipeline.rgb_strips import to_eight_bits
from input_pipeline.safe_open import UnreadableFileError, open_file
from input_pipeline.tiff_header import count_tag_values

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray

_PYTHON_DECODERS = ("ppm", "ppm_plain", "bmp_rle")  # of Pillow, which process about a million samples per second
_PYTHON_DECODER_PIXELS = 4_000_000
_OPENING_READS = 20_000  # reads of a header; cameras and scanners need fewer than a thousand
_BYTES_PER_READ = 256  # of the pixels, on average; decoders read blocks of several kilobytes
_HEADER_BYTES = 2**20  # more than the header of almost all JPEGs
_COMMON_SCANS = 16  # more than the scans of progressive JPEGs; 10 are usual
_SCANNED_PIXELS = 6_000_000_000  # pixels of all scans of a JPEG, of which about two billion take a second
_TAG_VALUES = 1_000_000  # of a tag of a TIFF, such as the positions of its tiles
_PLAIN_PNM, _PNM_COMMENT = (b"P1", b"P2", b"P3"), re.compile(rb"#[^\r\n]*[\r\n]?")


class OpenedImage(NamedTuple):
    """An image of which only the header has been read, and its scans if it is a JPEG."""

    image: Image.Image
    scans: JpegScans = ONE_SCAN


class EncodedImage:
    """An encoded image as a binary file that Pillow reads, with a limit on the number of reads.

    A file of a few megabytes can consist of a million tiny parts, each of which Pillow reads separately.

    Args:
        file: a seekable file, or the content.
        name: name of the image in error messages.

    Attributes:
        size: size in bytes.
    """

    def __init__(self, file: BinaryIO | bytes, name: str):
        self._file = io.BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file
        self._name = name
        self.size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._reads_left: float = _OPENING_READS

    def read(self, size: int = -1) -> bytes:
        """Reads like a file. Raises ImageError if there have been too many reads."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ImageError(self._name, "consists of too many parts; save it again, without metadata")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seeks like a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Returns the position."""
        return self._file.tell()

    def getvalue(self) -> bytes:
        """Returns the whole content."""
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else self.read_start(-1)

    def read_start(self, size: int) -> bytes:
        """Returns the first `size` bytes, and keeps the position."""
        position = self._file.tell()
        self._file.seek(0)
        content = self._file.read(size)
        self._file.seek(position)
        return content

    def count(self, pattern: bytes) -> int:
        """Counts a pattern of two bytes, without keeping the content in memory."""
        position, count, last = self._file.tell(), 0, b""
        self._file.seek(0)
        while block := self._file.read(_HEADER_BYTES):
            count += (last + block).count(pattern)
            last = block[-1:]
        self._file.seek(position)
        return count

    def close(self) -> None:
        """Does nothing, because the file belongs to the caller."""

    def expect_pixels(self, *, single_reads: bool) -> None:
        """Limits the number of reads to what decoding the pixels needs, or not at all if `single_reads` is true."""
        self._reads_left = np.inf if single_reads else _OPENING_READS + self.size // _BYTES_PER_READ


def get_name(image: ImageLike) -> str:
    """Returns the default name of an image in error messages."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return {bytes: "encoded image", np.ndarray: "image array"}.get(type(image), type(image).__name__)


@contextlib.contextmanager
def errors_as_image_errors(name: str) -> Iterator[None]:
    """Converts errors inside the `with` block to `ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise almost any exception on malformed data
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(name, f"cannot be decoded ({text})") from error


@contextlib.contextmanager
def open_source(image: ImageLike, name: str, limits: Limits) -> Iterator[bytes | EncodedImage | Image.Image]:
    """Reads a file, unless it is large, and converts arrays to images. Other images are yielded unchanged.

    Yields:
        The content of encoded images, an `EncodedImage` for large files, and an `Image` for everything else.

    Raises:
        ImageError: the file cannot be read or is too large, or the array has an unsupported shape or dtype.
    """
    if isinstance(image, Image.Image):
        yield image
    elif isinstance(image, bytes | bytearray | memoryview):
        _check_file_size(len(image), name, limits)
        yield bytes(image)
    elif isinstance(image, str | os.PathLike):
        with _open_file(image, name) as file:
            size = os.fstat(file.fileno()).st_size
            _check_file_size(size, name, limits)
            yield file.read() if size <= SMALL_BYTES else EncodedImage(file, name)
    else:
        yield _image_from_array(np.asarray(image), name, limits)


def _open_file(path: str | os.PathLike, name: str) -> BinaryIO:
    try:
        return open_file(path, buffering=0)
    except MissingFileError:
        raise ImageError(name, "no such file") from None
    except UnreadableFileError as error:
        raise ImageError(name, error.reason) from None


def _check_file_size(size: int, name: str, limits: Limits) -> None:
    if not size:
        raise ImageError(name, "the file is empty")
    if size > limits.image_file_bytes:
        raise ImageError(
            name,
            f"has {size:,} bytes, more than the limit of {limits.image_file_bytes:,} (config.limits.image_file_bytes)",
        )


@contextlib.contextmanager
def open_image(source: bytes | EncodedImage | Image.Image, name: str, limits: Limits) -> Iterator[OpenedImage]:
    """Opens what `open_source` yields with Pillow, which reads the header, and checks it.

    Raises:
        ImageError: the format is not supported, the header is damaged, or the image exceeds a limit.
    """
    if isinstance(source, Image.Image):
        _check_lazy_image(source, name)
        _check_image(source, name, limits)
        yield OpenedImage(source, _estimate_scans(source))
        return
    encoded = EncodedImage(source, name) if isinstance(source, bytes) else source
    image = _open_encoded(encoded, name)
    with contextlib.closing(image):
        _check_image(image, name, limits)
        is_slow = _uses_python_decoder(image)
        if is_slow and image.width * image.height > _PYTHON_DECODER_PIXELS:
            raise ImageError(
                name,
                f"is a {image.format} file of a kind that is decoded slowly, and has more than "
                f"{_PYTHON_DECODER_PIXELS:,} pixels; convert it to PNG",
            )
        scans = _read_scans(encoded, image)
        check_scans(*image.size, scans, name)
        encoded.expect_pixels(single_reads=is_slow)
        yield OpenedImage(image, scans)


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Raises ImageError if an image of this size in pixels exceeds a limit."""
    size = f"{width:,} x {height:,} pixels"
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width}x{height})")
    if max(width, height) > limits.image_side:
        raise ImageError(name, f"declares {size}; the maximum side is {limits.image_side:,} (config.limits.image_side)")
    if width * height > limits.image_pixels:
        maximum = f"{limits.image_pixels:,} pixels (config.limits.image_pixels)"
        raise ImageError(name, f"declares {size}, more than the limit of {maximum}")
    if max(width, height) > limits.image_aspect_ratio * min(width, height):
        maximum = f"{limits.image_aspect_ratio:g} (config.limits.image_aspect_ratio)"
        raise ImageError(name, f"declares {size}, an aspect ratio above the limit of {maximum}")


def check_scans(width: int, height: int, scans: JpegScans, name: str) -> None:
    """Raises ImageError if a JPEG consists of so many scans that decoding would take minutes."""
    if scans.count * width * height > _SCANNED_PIXELS and scans.count > _COMMON_SCANS:
        raise ImageError(name, f"consists of {scans.count:,} scans, which takes too long to decode; save it again")


def check_memory(size: int, name: str, limits: Limits) -> None:
    """Raises ImageError if decoding an image takes more memory than the limit; `size` is in bytes."""
    if size > limits.decoding_bytes:
        maximum = f"{limits.decoding_bytes / 2**20:,.0f} MB (config.limits.decoding_bytes)"
        raise ImageError(name, f"takes up to {size / 2**20:,.0f} MB of memory, more than the limit of {maximum}")


def _check_image(image: Image.Image, name: str, limits: Limits) -> None:
    check_size(*image.size, name, limits)
    if image.mode == "F":
        raise ImageError(name, "has floating-point pixels of unknown range; save it with 8 or 16 bits")


def _check_lazy_image(image: Image.Image, name: str) -> None:
    """Refuses an image that its caller opened with Pillow but did not load, if Pillow's decoder must not run."""
    is_lazy = isinstance(image, ImageFile.StubImageFile) or bool(getattr(image, "tile", None))
    if is_lazy and image.format not in {pillow_format for _, pillow_format in DECODERS.values()}:
        raise ImageError(name, describe_refused(image.format or "unknown"))


def _open_encoded(encoded: EncodedImage, name: str) -> ImageFile.ImageFile:
    start = encoded.read_start(64)
    opener = _find_opener(start)
    if opener is None:
        raise ImageError(name, describe_unreadable(start))
    if start[:2] in _PLAIN_PNM:  # Pillow's time is quadratic in the number of comments
        encoded = EncodedImage(_PNM_COMMENT.sub(b"", encoded.getvalue()), name)
    if sniff_format(start) == "TIFF" and count_tag_values(encoded) > _TAG_VALUES:
        raise ImageError(name, f"is a TIFF with more than {_TAG_VALUES:,} values in a tag; save it again")
    encoded.seek(0)
    try:
        image = opener(encoded)
    except SyntaxError:
        raise ImageError(name, describe_unreadable(start)) from None
    return image


def _find_opener(start: bytes) -> Callable[[EncodedImage], ImageFile.ImageFile] | None:
    """Returns the function of a library that opens a file with these first bytes; None if there is none."""
    if (name := sniff_format(start)) not in DECODERS:
        return None
    path, _ = DECODERS[name]
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError:  # the `heic` extra is not installed
        return None


def _read_scans(encoded: EncodedImage, image: ImageFile.ImageFile) -> JpegScans:
    if image.format not in ("JPEG", "MPO"):
        return ONE_SCAN
    scans = read_jpeg_scans(encoded.read_start(_HEADER_BYTES)) or _estimate_scans(image)
    return scans._replace(count=encoded.count(SCAN_MARKER)) if scans.coefficient_bytes else scans


def _estimate_scans(image: Image.Image) -> JpegScans:
    """Returns the scans of an image whose file may not be accessible: many if it is a progressive JPEG."""
    layers = getattr(image, "layer", ())  # of Pillow's JPEGs: id, sampling factors and quantisation table
    if not layers or not image.info.get("progressive"):
        return ONE_SCAN
    return JpegScans(_COMMON_SCANS, count_coefficient_bytes(*image.size, [layer[1:3] for layer in layers]))


def _uses_python_decoder(image: Image.Image) -> bool:
    return any(tile[0] in _PYTHON_DECODERS for tile in image.tile)


def _image_from_array(array: np.ndarray, name: str, limits: Limits) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        expected = "[height, width] or [height, width, 1, 3 or 4]"
        raise ImageError(name, f"array of unsupported shape {array.shape}; expected {expected}")
    check_size(array.shape[1], array.shape[0], name, limits)
    if array.dtype == np.uint16:
        array = to_eight_bits(array)
    if array.dtype != np.uint8:
        raise ImageError(name, f"array of unsupported dtype {array.dtype}; expected uint8 (0..255) or uint16")
    return Image.fromarray(np.ascontiguousarray(array))
