"""From any image to one square of 8-bit RGB: the only preprocessing there is, in training, evaluation and use.

An image may come as a file, as encoded bytes, as a PIL image or as an array; `resampling.py` has the one rule by which
their pixels become a square. JPEGs of the usual kinds are decoded by libjpeg-turbo through simplejpeg, at a half, a
quarter or an eighth where that is enough; all else, and whatever that refuses, by Pillow. The same photograph as a JPEG
and as an array differs by rounding and by what a JPEG's decoder leaves out otherwise than a box average: under 1 level
of 255 on average.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image

from input_pipeline.errors import ConfigError, UserError
from input_pipeline.resampling import check_choices, to_square, whole_factor

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray

PIXELS = 2  # version of what `decode_image` makes of a file; 1, until 2026-11, used Pillow for all of it
MAX_PIXELS = 178_956_970  # more than any camera's; a small file that claims more is taken for a decompression bomb
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

log = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
# How an image of each orientation is turned upright: (transposed, rows reversed, columns reversed), in this order.
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
    """An image that cannot be used. Says which one (`name`) and why (`reason`)."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.name, self.reason)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input; kept with the model, so that every user of it sees the same pixels.

    Attributes:
        size: side of the square, in pixels.
        fit: "squash" stretches the image to the square; "crop" keeps the aspect ratio and takes the centre.
        interpolation: "bilinear", "bicubic" or "area", each with antialiasing.
        mean: of each channel, on the scale 0..255.
        std: of each channel, on the same scale.
    """

    size: int = 224
    fit: str = "squash"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self):
        check_choices(self.size, self.fit, self.interpolation)
        for key in ("mean", "std"):
            value = tuple(float(x) for x in np.asarray(getattr(self, key)).reshape(-1))
            if len(value) != 3:
                raise ConfigError(f"preprocessing {key} must have three numbers, one a channel; got {value}")
            object.__setattr__(self, key, value)
        if min(self.std) <= 0:
            raise ConfigError(f"preprocessing std must be positive, got {self.std}")

    def load(self, image: ImageLike, *, name: str | None = None) -> UInt8[np.ndarray, "size size 3"]:
        """Decodes and resizes one image.

        Raises:
            ImageError: the image cannot be read; `name` (the path, if not given) is in the message.
        """
        return decode_image(image, self.size, self.fit, self.interpolation, name=name)

    def normalise(self, images: Any) -> Float[Any, "*batch height width 3"]:
        """Scales pixels of 0..255 (NumPy or JAX, integer or float) to what the encoder was made for, in float32."""
        mean = np.asarray(self.mean, np.float32)
        return (images.astype(np.float32) - mean) * (1.0 / np.asarray(self.std, np.float32))

    def to_json(self) -> str:
        """Returns the settings as a JSON object, and with them the version of the pixels they make."""
        return json.dumps({**dataclasses.asdict(self), "pixels": PIXELS}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Reads what `to_json` wrote; logs a warning where that was of another version of the pixels."""
        settings = json.loads(text)
        if (then := settings.pop("pixels", 1)) != PIXELS:
            log.warning(
                "the run was trained on images read in another way (version %d) than they are read now (%d): pixels "
                "differ by one to three levels of 255 on average",
                then,
                PIXELS,
            )
        return cls(**settings)


def decode_image(
    image: ImageLike, size: int, fit: str = "squash", interpolation: str = "bicubic", *, name: str | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Reads an image and brings it to a square of 8-bit RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled to 8 bits, and of an
    animation the first frame counts. Safe to call from many threads at once: the work releases Python's lock.

    Args:
        image: a path, encoded bytes, a PIL image, or an array: uint8 or uint16, [height, width] or
            [height, width, 1, 3 or 4].
        size: side of the result, in pixels.
        fit: "squash" or "crop", see `Preprocessing`.
        interpolation: "bilinear", "bicubic" or "area".
        name: what error messages call the image; the path by default.

    Raises:
        ImageError: the image cannot be read, with its name and the reason.
    """
    check_choices(size, fit, interpolation)
    name = name or _name_of(image)
    with _opened(image, name) as opened:
        pixels = _shrunk(opened, whole_factor(*opened.size, size), name, ours=opened is not image)
        square = to_square(pixels, size, fit, interpolation)
        return _upright(square, opened)  # after resizing: the square is smaller, and both fits are symmetric


def thumbnail(image: ImageLike, longest: int, *, name: str | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as `decode_image` does and shrinks it, in its own proportions, for people to look at.

    Args:
        image: as for `decode_image`.
        longest: most pixels of the longer side; a smaller image keeps its size.
        name: what error messages call the image; the path by default.

    Raises:
        ImageError: the image cannot be read, with its name and the reason.
    """
    name = name or _name_of(image)
    with _opened(image, name) as opened:
        scale = min(1.0, longest / max(opened.size))
        size = tuple(max(round(side * scale), 1) for side in opened.size)
        if opened is not image and opened.format == "JPEG":
            opened.draft(None, size)
        small = _to_rgb(opened, name).resize(size, Image.Resampling.BICUBIC)
        return _upright(np.asarray(small), opened)


@contextlib.contextmanager
def _opened(image: ImageLike, name: str) -> Iterator[Image.Image]:
    """The image, open for a while; whatever goes wrong with it meanwhile becomes an `ImageError`."""
    opened = None
    try:
        opened = _open(image, name)
        _check_size(opened, name)
        yield opened
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise almost any type on malformed data
        raise ImageError(name, _reason(error)) from error
    finally:
        if opened is not None and opened is not image:
            opened.close()


def _name_of(image: ImageLike) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return {bytes: "encoded image", np.ndarray: "image array"}.get(type(image), type(image).__name__)


def _open(image: ImageLike, name: str) -> Image.Image:
    """Opens the image, reading no more than its header where the format allows."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            image = path.read_bytes()
        except FileNotFoundError:
            raise ImageError(name, "no such file") from None
        except IsADirectoryError:
            raise ImageError(name, "is a folder, not an image") from None
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise ImageError(name, "the file is empty")
        try:
            return Image.open(io.BytesIO(image))
        except Image.UnidentifiedImageError:
            start = bytes(image[:12])
            raise ImageError(name, f"not in an image format that can be read here (it starts with {start!r})") from None
    return _from_array(np.asarray(image), name)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageError(name, f"an array of shape {array.shape}; want [height, width] or [height, width, 1, 3 or 4]")
    if array.dtype == np.uint16:
        array = _eight_bits(array)
    if array.dtype != np.uint8:
        raise ImageError(name, f"an array of {array.dtype}, whose range is unclear; want uint8 (0..255) or uint16")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageError(name, f"claims {width}x{height} pixels, more than the limit of {MAX_PIXELS:,}")


def _shrunk(image: Image.Image, factor: int, name: str, ours: bool) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image as RGB, shrunk by a whole factor; `ours` says that nobody else uses the object."""
    width, height = image.size
    if ours and image.format == "JPEG":
        if image.mode in ("RGB", "L"):
            wanted = {"min_width": -(-width // factor), "min_height": -(-height // factor)}
            with contextlib.suppress(ValueError):  # what it refuses may still be read below, or is told about there
                return simplejpeg.decode_jpeg(image.fp.getvalue(), **wanted)
        # The decoder takes the greatest factor that keeps it above this request: exactly ours.
        image.draft(None, (width // factor, height // factor))
    rgb = _to_rgb(image, name)
    if factor > 1 and rgb.size == (width, height):
        rgb = rgb.reduce(factor)
    return np.asarray(rgb)


def _upright(pixels: UInt8[np.ndarray, "height width 3"], image: Image.Image) -> UInt8[np.ndarray, "rows columns 3"]:
    """The pixels turned as the image's EXIF orientation asks."""
    transposed, rows, columns = _UPRIGHT.get(_orientation(image), (False, False, False))
    if transposed:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing; the pixels may still be sound
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the pixels as RGB; never the same object changed in place."""
    mode = image.mode
    if mode == "F":
        raise ImageError(name, "holds floating-point pixels, whose range is unclear; save it with 8 or 16 bits")
    if mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(name, "holds 32-bit pixels outside 0..65535; save it with 8 or 16 bits")
        return Image.fromarray(_eight_bits(levels)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    if mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _eight_bits(levels: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """Maps 0..65535 onto 0..255, to the nearest."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"refused as a decompression bomb ({text})"
    return f"cannot be decoded ({text})"
