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
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image

from input_pipeline.decoding_memory import BUDGET, estimate_image, estimate_jpeg
from input_pipeline.errors import ConfigError, ImageError
from input_pipeline.image_opening import (
    EncodedImage,
    ImageLike,
    check_memory,
    check_scans,
    check_size,
    errors_as_image_errors,
    get_name,
    open_image,
    open_source,
)
from input_pipeline.jpeg_header import read_jpeg_header
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.resampling import (
    FACTORS,
    check_choices,
    choose_reduction_factor,
    estimate_resize,
    resize_to_square,
)
from input_pipeline.rgb_strips import reduce_to_rgb

__all__ = ["ImageError", "ImageLike", "Preprocessing", "decode_image", "make_thumbnail"]

Finish = Callable[[np.ndarray, int], np.ndarray]  # (pixels, orientation) -> square, the last step of decoding

PIXEL_VERSION = 2  # version of the output of `decode_image`; version 1, until 2026-11, used Pillow throughout
MAX_PIXELS = DEFAULT_LIMITS.image_pixels  # the former name of the limit, until version 0.4

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


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images for a model, stored with the model so that its inputs are always the same.

    Attributes:
        size: side of the square, in pixels.
        resize: "stretch" stretches the image to the square; "crop" keeps the aspect ratio and takes a centre crop.
        interpolation: "bilinear", "bicubic" or "area", each with antialiasing.
        mean: per-channel mean, in 0..255.
        std: per-channel standard deviation, in 0..255.
        limits: limits on images, which belong to the process and are neither stored nor compared.
    """

    size: int = 224
    resize: str = "stretch"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    limits: Limits = dataclasses.field(default=DEFAULT_LIMITS, compare=False, repr=False)

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
        return decode_image(image, self.size, self.resize, self.interpolation, name=name, limits=self.limits)

    def make_thumbnail(
        self, image: ImageLike, longer_side: int, *, name: str | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Shrinks an image for display, under the same limits; see the function `make_thumbnail`."""
        return make_thumbnail(image, longer_side, name=name, limits=self.limits)

    def normalise(self, images: Any) -> Float[Any, "*batch height width 3"]:
        """Normalises pixels in 0..255 (NumPy or JAX, integer or float) by `mean` and `std`, in float32."""
        mean = np.asarray(self.mean, np.float32)
        return (images.astype(np.float32) - mean) * (1.0 / np.asarray(self.std, np.float32))

    def to_json(self) -> str:
        """Returns the settings and the pixel version as a JSON object."""
        return json.dumps({**self.settings(), "pixels": PIXEL_VERSION}, indent=2)

    def settings(self) -> dict[str, Any]:
        """Returns the settings that determine pixels: everything except the limits."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "limits"}

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
    image: ImageLike,
    size: int,
    resize: str = "stretch",
    interpolation: str = "bicubic",
    *,
    name: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
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
        limits: limits on the file, its size in pixels, and memory. They are checked before pixels are decoded.

    Raises:
        ImageError: the image cannot be read, or exceeds a limit.
    """
    check_choices(size, resize, interpolation)
    name = name or get_name(image)

    def finish(pixels: np.ndarray, orientation: int) -> np.ndarray:
        square = resize_to_square(pixels, size, resize, interpolation)
        return _orient(square, orientation)  # after the resize: the square is smaller, and both modes are symmetric

    with errors_as_image_errors(name), open_source(image, name, limits) as source:
        square = _decode_plain_jpeg(source, size, finish, name, limits) if isinstance(source, bytes) else None
        return _decode_with_pillow(source, size, finish, name, limits) if square is None else square


def make_thumbnail(
    image: ImageLike, longer_side: int, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image as `decode_image` does and shrinks it for display, preserving the aspect ratio.

    Args:
        image: as in `decode_image`.
        longer_side: maximum length of the longer side, in pixels; smaller images are not enlarged.
        name: name of the image in error messages; defaults to the path.
        limits: limits on the file and its size in pixels.

    Raises:
        ImageError: the image cannot be read, or exceeds a limit.
    """
    name = name or get_name(image)
    with (
        errors_as_image_errors(name),
        open_source(image, name, limits) as source,
        open_image(source, name, limits) as (pil_image, scans),
    ):
        scale = min(1.0, longer_side / max(pil_image.size))
        size = tuple(max(round(side * scale), 1) for side in pil_image.size)
        ratio = min(pil_image.width // size[0], pil_image.height // size[1])
        draft_factor = next((factor for factor in FACTORS if factor <= ratio), 1)
        with _reserve(source, estimate_image(pil_image, scans, draft_factor), name, limits):
            if pil_image is not source and pil_image.format == "JPEG":
                pil_image.draft(None, size)
            pil_image.load()
            # A box average to at least twice the size is as good, and does not need the whole image in RGB.
            factor = max(min(pil_image.width // size[0], pil_image.height // size[1]) // 2, 1)
            pixels = reduce_to_rgb(pil_image, factor, name)
            orientation = _get_orientation(pil_image)
            if pil_image is not source:
                pil_image.close()  # frees its pixels before other images may use the memory
            small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            return _orient(np.asarray(small), orientation)


def _decode_plain_jpeg(
    data: bytes, size: int, finish: Finish, name: str, limits: Limits
) -> UInt8[np.ndarray, "size size 3"] | None:
    """Decodes an RGB or grayscale JPEG; returns None if Pillow has to read the file."""
    header = read_jpeg_header(data)
    if header is None:
        return None
    check_size(header.width, header.height, name, limits)
    check_scans(header.width, header.height, header.scans, name)
    factor = choose_reduction_factor(header.width, header.height, size)
    memory = estimate_jpeg(header.width, header.height, header.scans, factor)
    memory += estimate_resize(header.width // factor, header.height // factor, size)
    check_memory(memory, name, limits)
    with BUDGET.reserve(memory, limits.decoding_bytes):
        pixels = _decode_reduced(data, header.width, header.height, factor)
        return None if pixels is None else finish(pixels, header.orientation)


def _decode_with_pillow(
    source: bytes | EncodedImage | Image.Image, size: int, finish: Finish, name: str, limits: Limits
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes any image."""
    with open_image(source, name, limits) as (image, scans):
        factor = choose_reduction_factor(*image.size, size)
        memory = estimate_image(image, scans, factor)
        memory += estimate_resize(image.width // factor, image.height // factor, size)
        with _reserve(source, memory, name, limits):
            pixels = _reduce(image, factor, name, can_modify=image is not source)
            orientation = _get_orientation(image)
            if image is not source:
                image.close()  # frees its pixels before other images may use the memory
            return finish(pixels, orientation)


def _reserve(
    source: bytes | EncodedImage | Image.Image, memory: int, name: str, limits: Limits
) -> contextlib.AbstractContextManager[None]:
    """Reserves memory to decode an image, and to read its file if that has not been read."""
    check_memory(memory, name, limits)
    file_bytes = source.size if isinstance(source, EncodedImage) else 0
    return BUDGET.reserve(min(memory + file_bytes, limits.decoding_bytes), limits.decoding_bytes)


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
    image.load()
    return reduce_to_rgb(image, factor if image.size == (width, height) else 1, name)


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
