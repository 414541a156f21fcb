"""Conversion of images to RGB in horizontal strips, which takes little memory in addition to the image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from input_pipeline.errors import ImageError

_STRIP_PIXELS = 2**20  # before the reduction; smaller images are one strip


def reduce_to_rgb(image: Image.Image, factor: int, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the RGB pixels of an image, reduced by a box average. Does not modify the image.

    Transparency is composited over white, and 16-bit values are scaled to 8 bits.

    Args:
        image: the image.
        factor: integer factor of the reduction; partial blocks at the right and bottom edges are treated as full ones.
        name: name of the image in error messages.

    Raises:
        ImageError: the image has pixels of unknown range.
    """
    width, height = image.size
    rows = max(_STRIP_PIXELS // (width * factor), 1) * factor
    if rows >= height:
        return _reduce_strip(image, factor, name)
    result = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        result[top // factor : (top + rows) // factor] = _reduce_strip(strip, factor, name)
    return result


def to_eight_bits(levels: Shaped[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Scales 0..65535 to 0..255, rounding to nearest."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reduce_strip(strip: Image.Image, factor: int, name: str) -> UInt8[np.ndarray, "height width 3"]:
    rgb = _to_rgb(strip, name)
    return np.asarray(rgb.reduce(factor) if factor > 1 else rgb)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(name, "has 32-bit pixels outside 0..65535; save it with 8 or 16 bits")
        return Image.fromarray(to_eight_bits(levels)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")
