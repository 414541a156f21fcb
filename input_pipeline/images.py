"""From any image to one square of 8-bit RGB: the only preprocessing there is, in training, evaluation and use.

An image may come as a file, as encoded bytes, as a PIL image or as an array. Large ones are first shrunk by a whole
factor (2, 4 or 8, as far as the result stays above the wanted size) and then resampled with an antialiasing filter. A
JPEG takes the factor inside its decoder, which is several times faster; everything else takes it as a box average. The
two differ by rounding and by the JPEG decoder's treatment of colour: under 1 level of 255 on average for photographs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray

FITS = ("squash", "crop")
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
MAX_PIXELS = 178_956_970  # more than any camera's; a small file that claims more is taken for a decompression bomb
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
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
        _check_choices(self.size, self.fit, self.interpolation)
        for key in ("mean", "std"):
            value = tuple(float(x) for x in np.asarray(getattr(self, key)).reshape(-1))
            if len(value) != 3:
                raise ValueError(f"preprocessing {key} must have three numbers, one a channel; got {value}")
            object.__setattr__(self, key, value)
        if min(self.std) <= 0:
            raise ValueError(f"preprocessing std must be positive, got {self.std}")

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
        """Returns the settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


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
    _check_choices(size, fit, interpolation)
    name = name or _name_of(image)
    with _opened(image, name) as opened:
        box = _source_box(opened.size, fit)
        factor = _whole_factor(box, size)
        turn = _UPRIGHT.get(_orientation(opened))
        if factor > 1 and opened is not image and opened.format == "JPEG":
            width, height = opened.size
            # The decoder takes the greatest factor that keeps it above this request: exactly ours.
            opened.draft(None, (width // factor, height // factor))
            taken = 1 if opened.size == (width, height) else factor
        else:
            taken = 1
        rgb = _to_rgb(opened, name)
        if taken != factor:
            rgb = rgb.reduce(factor)
        box = tuple(edge / factor for edge in box)
        whole = (0, 0, size, size)
        square = (
            rgb if box == whole == (0, 0, *rgb.size) else rgb.resize((size, size), INTERPOLATIONS[interpolation], box)
        )
        if turn is not None:
            square = square.transpose(turn)  # after resizing: the square is smaller, and both fits are symmetric
        return np.asarray(square)  # a read-only view: batches copy it once


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
        turn = _UPRIGHT.get(_orientation(opened))
        scale = min(1.0, longest / max(opened.size))
        size = tuple(max(round(side * scale), 1) for side in opened.size)
        if opened is not image and opened.format == "JPEG":
            opened.draft(None, size)
        small = _to_rgb(opened, name).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(small if turn is None else small.transpose(turn))


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


def _check_choices(size: int, fit: str, interpolation: str) -> None:
    if size < 1:
        raise ValueError(f"image size must be at least 1, got {size}")
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}; choose one of {', '.join(FITS)}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}")


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


def _source_box(extent: tuple[int, int], fit: str) -> tuple[float, float, float, float]:
    """Returns the part of the image that is used, as (left, top, right, bottom) in pixels."""
    width, height = extent
    if fit == "squash":
        return 0.0, 0.0, float(width), float(height)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _whole_factor(box: tuple[float, float, float, float], size: int) -> int:
    """Returns the greatest of 1, 2, 4, 8 by which the box can shrink and still be as large as the result."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((factor for factor in (8, 4, 2) if side >= factor * size), 1)


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
