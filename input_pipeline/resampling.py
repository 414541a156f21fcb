"""Resamples pixels to a square, identically for every kind of input.

First, the image is reduced by an integer factor (8, 4 or 2) if the result is at least 15/16 of the target size. (At
224, this applies to the 640 x 427 photographs that make up most of COCO.) For JPEGs, the decoder applies the factor by
dropping high frequencies; for all other inputs it is a box average. Partial blocks at the right and bottom edges are
treated as full blocks. Then the image is resized to the square in one step, with antialiasing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from kornia_rs import imgproc
from PIL import Image

from input_pipeline.data_spec import RESIZE_MODES
from input_pipeline.errors import ConfigError

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
FACTORS = (8, 4, 2)  # the factors that JPEG decoders support efficiently
_INTERMEDIATE_BYTES = 6  # per pixel, of the image between the two passes of a resize
_MAX_INTERMEDIATE_BYTES = 256 * 2**20
_MIN_REDUCED_SIZE = 15 / 16  # minimum size after the reduction, as a fraction of the target size


def check_choices(size: int, resize: str, interpolation: str) -> None:
    """Raises ConfigError for an invalid size, resize mode or interpolation."""
    if size < 1:
        raise ConfigError(f"image size must be at least 1, got {size}")
    if resize not in RESIZE_MODES:
        raise ConfigError(f"unknown resize mode {resize!r}; expected one of {', '.join(RESIZE_MODES)}")
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(f"unknown interpolation {interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}")


def choose_reduction_factor(width: int, height: int, size: int) -> int:
    """Returns the factor (8, 4, 2 or 1) by which to reduce an image before the resize to a square of side `size`."""
    return next((factor for factor in FACTORS if min(width, height) >= factor * size * _MIN_REDUCED_SIZE), 1)


def estimate_resize(width: int, height: int, size: int) -> int:
    """Returns the memory that resizing an image to a square takes, in bytes, including that of the image."""
    return 3 * width * height + _INTERMEDIATE_BYTES * size * (height if _rows_first(width, height, size) else width)


def _rows_first(width: int, height: int, size: int) -> bool:
    """Whether the rows are resized before the columns, as always unless the intermediate image would be huge."""
    return width >= height or _INTERMEDIATE_BYTES * size * height <= _MAX_INTERMEDIATE_BYTES


def resize_to_square(
    pixels: UInt8[np.ndarray, "height width 3"], size: int, resize: str, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes an image to a square, with antialiasing.

    Bicubic interpolation, the default, uses kornia-rs, which takes less than half of Pillow's time and produces the
    same pixels up to rounding (0.04 of 255 levels on average). Other modes use Pillow, because kornia-rs does not
    antialias them. Both libraries release the GIL.

    Args:
        pixels: the image, already reduced by its integer factor.
        size: side of the result, in pixels.
        resize: "stretch" stretches the image to the square; "crop" takes the centre square.
        interpolation: a key of `INTERPOLATIONS`.
    """
    if resize == "crop":
        height, width, _ = pixels.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[:2] == (size, size):
        return pixels
    if interpolation == "bicubic":
        height, width, _ = pixels.shape
        if not _rows_first(width, height, size):
            # kornia-rs starts with the rows, and ends the process if it cannot allocate the image between the passes.
            return resize_to_square(pixels.transpose(1, 0, 2), size, resize, interpolation).transpose(1, 0, 2)
        return imgproc.resize(np.ascontiguousarray(pixels), (size, size), interpolation, antialias=True)
    return np.asarray(Image.fromarray(pixels).resize((size, size), INTERPOLATIONS[interpolation]))
