"""Limits on images apply to every kind of input, and are checked before pixels are decoded."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hostile_images import SIZED_FORMATS, declare_size, encode, make_png, make_slow_pnm, repeat_scans
from PIL import Image

from input_pipeline import resampling
from input_pipeline.images import ImageError, Preprocessing, decode_image, make_thumbnail
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.resampling import resize_to_square

SMALL = Limits(image_side=100, image_pixels=5000, image_aspect_ratio=4)


def make_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def check_rejected(image, message: str, limits: Limits = SMALL) -> None:
    for read in (decode_image, make_thumbnail):
        with pytest.raises(ImageError, match=message) as error:
            read(image, 16, name="photo", limits=limits)
        assert str(error.value).startswith("photo: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["file", "bytes", "PIL image", "array"])
@pytest.mark.parametrize(
    ("width", "height", "key"),
    [(101, 40, "image_side"), (40, 101, "image_side"), (90, 60, "image_pixels"), (5, 21, "image_aspect_ratio")],
)
def test_each_limit_applies_to_each_kind_of_input(kind, width, height, key, tmp_path):
    image = make_image(width, height)
    inputs = {
        "file": tmp_path / "image.png",
        "bytes": encode(image, "JPEG"),
        "PIL image": image,
        "array": np.asarray(image),
    }
    image.save(inputs["file"])
    check_rejected(inputs[kind], rf"{width} x {height} pixels.*config\.limits\.{key}")
    assert decode_image(inputs[kind], 16).shape == (16, 16, 3)


@pytest.mark.parametrize("image_format", SIZED_FORMATS)
@pytest.mark.parametrize(("width", "height"), [(65_000, 65_000), (1, 60_000), (60_000, 1), (2**31 - 1, 2**31 - 1)])
def test_absurd_sizes_are_rejected_in_every_format(image_format, width, height):
    data = declare_size(image_format, width, height)
    for read in (decode_image, make_thumbnail):
        with pytest.raises(ImageError, match="photo"):
            read(data, 16, name="photo")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"])
def test_the_message_names_the_declared_size_and_the_key(image_format):
    size = (60_000, 5_000) if image_format != "WEBP" else (16_000, 16_000)
    check_rejected(
        declare_size(image_format, *size), r"declares 60,000 x 5,000 .*config\.limits\.image_pixels", DEFAULT_LIMITS
    )


def test_files_above_the_size_limit_are_rejected(tmp_path):
    data = encode(make_image(60, 60), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    limits = dataclasses.replace(DEFAULT_LIMITS, image_file_bytes=len(data) - 1)
    message = rf"has {len(data):,} bytes, more than the limit of {len(data) - 1:,} \(config\.limits\.image_file_bytes\)"
    check_rejected(tmp_path / "a.png", message, limits)
    check_rejected(data, message, limits)


@pytest.mark.parametrize(
    ("options", "rejected"),
    [({}, False), ({"progressive": True}, True), ({"progressive": True, "subsampling": 0}, True)],
)
def test_the_memory_of_progressive_jpegs_is_limited(options, rejected):
    """Their coefficients take at least 3 bytes per pixel; other JPEGs are reduced while they are decoded."""
    data = encode(make_image(1000, 1000), "JPEG", **options)
    limits = dataclasses.replace(DEFAULT_LIMITS, decoding_bytes=2_000_000)
    if rejected:
        check_rejected(
            data, r"takes up to \d MB of memory, more than .* 2 MB \(config\.limits\.decoding_bytes\)", limits
        )
    else:
        assert decode_image(data, 32, limits=limits).shape == (32, 32, 3)


def test_jpegs_with_too_many_scans_are_rejected():
    check_rejected(repeat_scans(2000, 2000), r"consists of 2,010 scans, which takes too long", DEFAULT_LIMITS)
    assert decode_image(repeat_scans(64, 100), 16).shape == (16, 16, 3)  # small images may have many


def test_formats_that_pillow_decodes_in_python_have_a_lower_limit():
    check_rejected(make_slow_pnm(2001, 2000), "decoded slowly, and has more than 4,000,000 pixels", DEFAULT_LIMITS)
    assert decode_image(make_slow_pnm(40, 30), 16).max() == 0


def test_photographs_of_telephones_and_panoramas_are_within_the_default_limits():
    for width, height in ((16_320, 12_240), (48_000, 5_000), (5_000, 48_000), (1_280, 60_000)):
        with pytest.raises(ImageError, match=r"truncated|unrecognized data stream|broken") as error:
            decode_image(declare_size("PNG", width, height), 16)
        assert "limit" not in str(error.value)


def test_preprocessing_applies_its_limits_and_does_not_store_them():
    preprocessing = Preprocessing(16, limits=SMALL)
    for read in (preprocessing.load, lambda image: preprocessing.make_thumbnail(image, 16)):
        with pytest.raises(ImageError, match="image_side"):
            read(make_image(101, 50))
    assert preprocessing == Preprocessing(16) and preprocessing.to_json() == Preprocessing(16).to_json()


def test_caches_are_keyed_by_limits_that_differ_from_the_defaults():
    assert Limits().image_key() == {}
    assert Limits(image_pixels=10, caption_file_bytes=3).image_key() == {"image_pixels": 10}


@pytest.mark.parametrize(("height", "width"), [(3000, 20), (500, 60), (60, 500)])
def test_tall_images_are_resized_in_the_order_that_needs_less_memory(height, width, monkeypatch):
    pixels = np.asarray(make_image(width, height))
    expected = resize_to_square(pixels, 64, "stretch", "bicubic").astype(int)
    monkeypatch.setattr(resampling, "_MAX_INTERMEDIATE_BYTES", 1000)
    assert resampling.estimate_resize(width, height, 64) == 3 * width * height + 6 * 64 * min(width, height)
    assert np.abs(resize_to_square(pixels, 64, "stretch", "bicubic") - expected).max() <= 1


def test_lazily_opened_images_are_checked(tmp_path: Path):
    image = Image.open(io.BytesIO(make_png(120, 30)))
    check_rejected(image, "image_side")
    assert decode_image(image, 16).shape == (16, 16, 3)
