"""The one rule by which pixels become a square, whatever they came from.

First a whole factor: an image is shrunk by 8, 4 or 2 if it stays at least 15/16 as large as the result. (That admits
the photographs of 640 x 427 that COCO is full of, at 224.) A JPEG takes the factor inside its decoder, by leaving out
high frequencies; everything else takes it as a box average. A part of a row or column that is left over at the right
and lower edge counts as a whole one. Then one antialiased resize to the square.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from kornia_rs import imgproc
from PIL import Image

from input_pipeline.data_spec import FITS
from input_pipeline.errors import ConfigError

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
FACTORS = (8, 4, 2)  # what JPEG decoders have fast code for
_LEAST = 15 / 16  # of the wanted size: what a whole factor has to leave


def check_choices(size: int, fit: str, interpolation: str) -> None:
    """Raises ConfigError, with the choices, for one that there is not."""
    if size < 1:
        raise ConfigError(f"image size must be at least 1, got {size}")
    if fit not in FITS:
        raise ConfigError(f"unknown fit {fit!r}; choose one of {', '.join(FITS)}")
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(f"unknown interpolation {interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}")


def whole_factor(width: int, height: int, size: int) -> int:
    """The factor, 8, 4, 2 or 1, by which an image shrinks before it is resized to a square of `size`."""
    return next((factor for factor in FACTORS if min(width, height) >= factor * size * _LEAST), 1)


def to_square(
    pixels: UInt8[np.ndarray, "height width 3"], size: int, fit: str, interpolation: str
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes an image to a square, with antialiasing.

    Bicubic, the default, runs in kornia-rs, whose pixels are Pillow's but for rounding (0.04 of 255 levels on average)
    in less than half the time; what it does not antialias runs in Pillow. Both release Python's lock.

    Args:
        pixels: the image, shrunk by its whole factor.
        size: side of the result, in pixels.
        fit: "squash" stretches the image to the square; "crop" takes the square in its middle.
        interpolation: a key of `INTERPOLATIONS`.
    """
    if fit == "crop":
        height, width, _ = pixels.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[:2] == (size, size):
        return pixels
    if interpolation == "bicubic":
        return imgproc.resize(np.ascontiguousarray(pixels), (size, size), interpolation, antialias=True)
    return np.asarray(Image.fromarray(pixels).resize((size, size), INTERPOLATIONS[interpolation]))
