"""Decodes and resizes an image with Pillow. Exported captioners contain this code (see `captioner_source`)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RESAMPLING = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "area": Image.BOX}


def load_pixels(image: str | os.PathLike[str] | Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """Returns an image as a square of RGB pixels [size, size, 3], uint8, as preprocessing.json describes it."""
    image = image if isinstance(image, Image.Image) else Image.open(image)
    size, original_size = settings["size"], image.size
    factor = next((factor for factor in (8, 4, 2) if min(original_size) >= factor * size * 15 / 16), 1)
    if image.format == "JPEG":
        image.draft(None, (image.width // factor, image.height // factor))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if factor > 1 and sorted(image.size) == sorted(original_size):
        image = image.reduce(factor)
    if settings["resize"] == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.array(image.resize((size, size), RESAMPLING[settings["interpolation"]]))
