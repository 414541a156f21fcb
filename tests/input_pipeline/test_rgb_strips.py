"""Converting an image in strips gives the same pixels as converting it at once."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hostile_images import encode
from PIL import Image

from input_pipeline import rgb_strips
from input_pipeline.errors import ImageError
from input_pipeline.rgb_strips import reduce_to_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (67, 43, 4), np.uint8)
RGBA = Image.fromarray(PIXELS)
RGB = RGBA.convert("RGB")
IMAGES = {
    **{mode: RGBA.convert(mode) for mode in ("RGB", "RGBA", "LA", "L", "1", "PA", "RGBa")},
    **{mode: RGB.convert(mode) for mode in ("CMYK", "YCbCr", "HSV", "P")},
    "I;16": Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200),
    "I": Image.fromarray(PIXELS[..., 0].astype(np.int32) * 200),
    "P with transparency": Image.open(
        io.BytesIO(encode(RGB.quantize(32), "PNG", transparency=bytes(range(0, 256, 8))))
    ),
    "RGB with a transparent colour": Image.open(io.BytesIO(encode(RGB, "PNG", transparency=RGB.getpixel((3, 50))))),
    "L with a transparent level": Image.open(io.BytesIO(encode(RGB.convert("L"), "PNG", transparency=9))),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_strips_do_not_change_pixels(name, factor, monkeypatch):
    image = IMAGES[name]
    expected = reduce_to_rgb(image, factor, name)
    assert expected.shape == (-(-67 // factor), -(-43 // factor), 3) and expected.std() > 5
    for strip_pixels in (1, 43 * 10, 43 * 64):
        monkeypatch.setattr(rgb_strips, "_STRIP_PIXELS", strip_pixels)
        np.testing.assert_array_equal(reduce_to_rgb(image, factor, name), expected)


def test_pixels_of_unknown_range_are_rejected_in_any_strip(monkeypatch):
    levels = np.zeros((50, 40), np.int32)
    levels[45, 3] = 70_000
    monkeypatch.setattr(rgb_strips, "_STRIP_PIXELS", 400)
    with pytest.raises(ImageError, match=r"scan\.tif: has 32-bit pixels outside 0\.\.65535"):
        reduce_to_rgb(Image.fromarray(levels), 2, "scan.tif")
