"""Image preprocessing: converts any image to a square of 8-bit RGB, identically for training, evaluation and inference.

The input is a file, encoded bytes, a PIL image or an array; `resampling.py` converts its pixels to a square. RGB and
grayscale JPEGs are decoded by libjpeg-turbo through simplejpeg, at 1/2, 1/4 or 1/8 scale where that is large enough.
Pillow decodes everything else, and JPEGs that simplejpeg rejects; HEIC requires the `heic` extra. File names do not
matter. The same photograph as a JPEG and as an array differs by less than 1 level of 255 on average, because of
rounding and because scaled JPEG decoding is not a box average.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image

from input_pipeline.errors import ConfigError, UserError
from input_pipeline.extras import is_installed
from input_pipeline.image_formats import describe_unreadable, sniff_format
from input_pipeline.jpeg_header import read_jpeg_header
from input_pipeline.resampling import check_choices, choose_reduction_factor, resize_to_square

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray

PIXEL_VERSION = 2  # version of the output of `decode_image`; version 1, until 2026-11, used Pillow throughout
MAX_PIXELS = 178_956_970  # more than any camera produces; a file that declares more is rejected as a decompression bomb

log = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag of the camera orientation
# Operations that undo each orientation, in the order (transpose, reverse rows, reverse columns).
_UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class ImageError(UserError, ValueError):
    """An unusable image, with its `name` and the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.name, self.reason)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images for a model, stored with the model so that its inputs are always the same.

    Attributes:
        size: side of the square, in pixels.
        resize: "stretch" stretches the image to the square; "crop" keeps the aspect ratio and takes a centre crop.
        interpolation: "bilinear", "bicubic" or "area", each with antialiasing.
        mean: per-channel mean, in 0..255.
        std: per-channel standard deviation, in 0..255.
    """

    size: int = 224
    resize: str = "stretch"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self):
        check_choices(self.size, self.resize, self.interpolation)
        for key in ("mean", "std"):
            value = tuple(float(x) for x in np.asarray(getattr(self, key)).reshape(-1))
            if len(value) != 3:
                raise ConfigError(f"preprocessing {key} must have three values, one per channel, got {value}")
            object.__setattr__(self, key, value)
        if min(self.std) <= 0:
            raise ConfigError(f"preprocessing std must be positive, got {self.std}")

    def load(self, image: ImageLike, *, name: str | None = None) -> UInt8[np.ndarray, "size size 3"]:
        """Decodes and resizes one image.

        Raises:
            ImageError: the image cannot be read. The message contains `name`, which defaults to the path.
        """
        return decode_image(image, self.size, self.resize, self.interpolation, name=name)

    def normalise(self, images: Any) -> Float[Any, "*batch height width 3"]:
        """Normalises pixels in 0..255 (NumPy or JAX, integer or float) by `mean` and `std`, in float32."""
        mean = np.asarray(self.mean, np.float32)
        return (images.astype(np.float32) - mean) * (1.0 / np.asarray(self.std, np.float32))

    def to_json(self) -> str:
        """Returns the settings and the pixel version as a JSON object."""
        return json.dumps({**dataclasses.asdict(self), "pixels": PIXEL_VERSION}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Parses the output of `to_json`, and logs a warning if its pixel version is not the current one."""
        settings = json.loads(text)
        if "fit" in settings:  # the name of `resize` until version 0.2
            settings["resize"] = {"squash": "stretch"}.get(settings["fit"], settings["fit"])
            del settings["fit"]
        if (version := settings.pop("pixels", 1)) != PIXEL_VERSION:
            log.warning(
                "the run was trained with version %d of image preprocessing; the current version is %d, and pixels "
                "differ by one to three levels of 255 on average",
                version,
                PIXEL_VERSION,
            )
        return cls(**settings)


def decode_image(
    image: ImageLike, size: int, resize: str = "stretch", interpolation: str = "bicubic", *, name: str | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes an image and resizes it to a square of 8-bit RGB.

    EXIF orientation is applied, transparency is composited over white, 16-bit values are scaled to 8 bits, and only the
    first frame of an animation is used. Thread-safe; most of the work releases the GIL.

    Args:
        image: a path, encoded bytes, a PIL image, or a uint8 or uint16 array [height, width] or
            [height, width, 1, 3 or 4].
        size: side of the result, in pixels.
        resize: "stretch" or "crop"; see `Preprocessing`.
        interpolation: "bilinear", "bicubic" or "area".
        name: name of the image in error messages; defaults to the path.

    Raises:
        ImageError: the image cannot be read.
    """
    check_choices(size, resize, interpolation)
    name = name or _get_name(image)
    with _errors_as_image_errors(name):
        image = _read_file(image, name)
        reduced = _decode_plain_jpeg(image, size) if isinstance(image, bytes) else None
        pixels, orientation = _decode_with_pillow(image, size, name) if reduced is None else reduced
        square = resize_to_square(pixels, size, resize, interpolation)
        return _orient(square, orientation)  # after the resize: the square is smaller, and both modes are symmetric


def make_thumbnail(
    image: ImageLike, longer_side: int, *, name: str | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image as `decode_image` does and shrinks it for display, preserving the aspect ratio.

    Args:
        image: as in `decode_image`.
        longer_side: maximum length of the longer side, in pixels; smaller images are not enlarged.
        name: name of the image in error messages; defaults to the path.

    Raises:
        ImageError: the image cannot be read.
    """
    name = name or _get_name(image)
    with _open_image(image, name) as pil_image:
        scale = min(1.0, longer_side / max(pil_image.size))
        size = tuple(max(round(side * scale), 1) for side in pil_image.size)
        if pil_image is not image and pil_image.format == "JPEG":
            pil_image.draft(None, size)
        small = _to_rgb(pil_image, name).resize(size, Image.Resampling.BICUBIC)
        return _orient(np.asarray(small), _get_orientation(pil_image))


@contextlib.contextmanager
def _errors_as_image_errors(name: str) -> Iterator[None]:
    """Converts errors inside the `with` block to `ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise almost any exception on malformed data
        raise ImageError(name, _describe_error(error)) from error


@contextlib.contextmanager
def _open_image(image: ImageLike, name: str) -> Iterator[Image.Image]:
    """Opens an image, and converts errors inside the `with` block to `ImageError`."""
    pil_image = None
    with _errors_as_image_errors(name):
        try:
            pil_image = _open(_read_file(image, name), name)
            _check_size(pil_image, name)
            yield pil_image
        finally:
            if pil_image is not None and pil_image is not image:
                pil_image.close()


def _decode_plain_jpeg(data: bytes, size: int) -> tuple[UInt8[np.ndarray, "height width 3"], int] | None:
    """Returns the reduced pixels and the orientation of a JPEG, or None if Pillow has to read the file."""
    header = read_jpeg_header(data)
    if header is None or header.width * header.height > MAX_PIXELS:
        return None
    factor = choose_reduction_factor(header.width, header.height, size)
    pixels = _decode_reduced(data, header.width, header.height, factor)
    return None if pixels is None else (pixels, header.orientation)


def _decode_with_pillow(image: ImageLike, size: int, name: str) -> tuple[UInt8[np.ndarray, "height width 3"], int]:
    """Returns the reduced pixels and the orientation of any image."""
    with _open_image(image, name) as pil_image:
        factor = choose_reduction_factor(*pil_image.size, size)
        pixels = _reduce(pil_image, factor, name, can_modify=pil_image is not image)
        return pixels, _get_orientation(pil_image)


def _get_name(image: ImageLike) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return {bytes: "encoded image", np.ndarray: "image array"}.get(type(image), type(image).__name__)


def _read_file(image: ImageLike, name: str) -> ImageLike:
    """Returns the content of a file; all other images are returned unchanged."""
    if not isinstance(image, str | os.PathLike):
        return image
    try:
        with open(image, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except IsADirectoryError:
        raise ImageError(name, "is a folder, not an image") from None


def _open(image: ImageLike, name: str) -> Image.Image:
    """Opens an image that is not a path; if the format allows it, only the header is read."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise ImageError(name, "the file is empty")
        if sniff_format(image) == "HEIC":
            _register_heic_decoder()
        try:
            return Image.open(io.BytesIO(image))
        except Image.UnidentifiedImageError:
            raise ImageError(name, describe_unreadable(image)) from None
    return _image_from_array(np.asarray(image), name)


@functools.cache
def _register_heic_decoder() -> None:
    """Adds HEIC to Pillow's formats if the `heic` extra is installed."""
    if is_installed("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _image_from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        expected = "[height, width] or [height, width, 1, 3 or 4]"
        raise ImageError(name, f"array of unsupported shape {array.shape}; expected {expected}")
    if array.dtype == np.uint16:
        array = _to_eight_bits(array)
    if array.dtype != np.uint8:
        raise ImageError(name, f"array of unsupported dtype {array.dtype}; expected uint8 (0..255) or uint16")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(name, f"declares {width}x{height} pixels, more than the limit of {MAX_PIXELS:,}")


def _reduce(image: Image.Image, factor: int, name: str, can_modify: bool) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the RGB pixels, reduced by an integer factor. `can_modify` allows in-place changes to the image."""
    width, height = image.size
    if can_modify and image.format == "JPEG":
        if image.mode in ("RGB", "L"):
            pixels = _decode_reduced(image.fp.getvalue(), width, height, factor)
            if pixels is not None:
                return pixels
        # The decoder selects the largest factor that yields at least this size, which is exactly `factor`.
        image.draft(None, (width // factor, height // factor))
    rgb = _to_rgb(image, name)
    if factor > 1 and rgb.size == (width, height):
        rgb = rgb.reduce(factor)
    return np.asarray(rgb)


def _decode_reduced(data: bytes, width: int, height: int, factor: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """Returns the pixels of a JPEG, reduced by an integer factor; None if libjpeg-turbo rejects it."""
    try:
        return simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))
    except ValueError:
        return None


def _orient(pixels: UInt8[np.ndarray, "height width 3"], orientation: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Applies the EXIF orientation of an image to its pixels."""
    transpose, reverse_rows, reverse_columns = _UPRIGHT.get(orientation, (False, False, False))
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]


def _get_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF block is damaged, but the pixels may still be intact
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts an image to RGB without modifying it in place."""
    mode = image.mode
    if mode == "F":
        raise ImageError(name, "has floating-point pixels of unknown range; save it with 8 or 16 bits")
    if mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(name, "has 32-bit pixels outside 0..65535; save it with 8 or 16 bits")
        return Image.fromarray(_to_eight_bits(levels)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _to_eight_bits(levels: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """Scales 0..65535 to 0..255, rounding to nearest."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _describe_error(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"rejected as a decompression bomb ({text})"
    return f"cannot be decoded ({text})"
