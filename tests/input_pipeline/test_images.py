"""Unusual images are decoded upright and complete, or rejected by name. All input types give equal pixels."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zlib

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.images import ImageError, Preprocessing, decode_image, make_thumbnail
from input_pipeline.resampling import INTERPOLATIONS, choose_reduction_factor, resize_to_square

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)


def corners(width=96, height=64) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_corners(square: np.ndarray, tolerance=12) -> None:
    size = square.shape[0]
    near, far = size // 4, size - 1 - size // 4
    actual = square[[near, near, far, far], [near, far, near, far]].astype(int)
    np.testing.assert_allclose(actual, [RED, GREEN, BLUE, WHITE], atol=tolerance)


def photograph(width=501, height=377) -> np.ndarray:
    """Smooth colours with some texture, as photographs have."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_formats_keep_their_corners(kind):
    assert_corners(decode_image(encoded(corners(), kind), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_camera_orientation_is_undone(orientation, resize):
    # The pixels that a camera stores: the inverse of the operation of a viewer for this tag.
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = corners() if undo is None else corners().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", quality=95, exif=exif)
    assert_corners(decode_image(data, 24, resize))
    assert_corners(decode_image(Image.open(io.BytesIO(data)), 24, resize))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_thumbnails_are_upright_keep_their_aspect_and_are_never_enlarged(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(corners(960, 640).transpose(Image.Transpose.ROTATE_90), kind, exif=exif)
    small = make_thumbnail(lying, 120)
    assert small.shape == (80, 120, 3)
    assert_corners(np.asarray(Image.fromarray(small).resize((80, 80))))
    assert make_thumbnail(encoded(corners(), kind), 400).shape == (64, 96, 3)
    image = corners()
    assert make_thumbnail(image, 48).shape == (32, 48, 3) and image.size == (96, 64)
    with pytest.raises(ImageError, match=r"a\.jpg: .*empty"):
        make_thumbnail(b"", 100, name="a.jpg")


def test_images_with_damaged_exif_are_read():
    assert_corners(decode_image(encoded(corners(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), 32))


def test_cmyk():
    assert_corners(decode_image(encoded(corners().convert("CMYK"), "JPEG", quality=95), 32))


def test_sixteen_bit_pixels_are_scaled_not_clipped():
    levels = np.array([[0, 257 * 40, 257 * 128, 65535]], np.uint16).repeat(4, 0)
    expected = np.array([0, 40, 128, 255])
    from_file = decode_image(encoded(Image.fromarray(levels), "PNG"), 4)
    np.testing.assert_array_equal(from_file, np.broadcast_to(expected[None, :, None], (4, 4, 3)))
    np.testing.assert_array_equal(decode_image(levels, 4), from_file)


def test_sixteen_bit_colour():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixel = np.array([65535, 257 * 128, 0], ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + pixel))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode_image(png, 1), [[[255, 128, 0]]])


def test_floating_point_pixels_are_rejected():
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 4, name="scan.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_composited_over_white(mode):
    image = Image.new(mode, (8, 8), 0)
    image.putpixel((0, 0), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    square = decode_image(encoded(image, "PNG"), 8)
    assert tuple(square[0, 0]) == (0, 0, 0)
    assert tuple(square[7, 7]) == WHITE


def test_palette_with_transparency():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 30, 30])
    image.putpixel((0, 0), 1)
    square = decode_image(encoded(image, "PNG", transparency=0), 8)
    assert tuple(square[0, 0]) == (200, 30, 30)
    assert tuple(square[7, 7]) == WHITE


def test_palette_with_transparency_per_colour():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    square = decode_image(encoded(image, "PNG", transparency=bytes([255, 128])), 2)
    assert square[0, 0, 0] == 0
    assert abs(int(square[0, 1, 0]) - 127) <= 1


def test_first_frame_of_an_animation():
    frames = [corners(), Image.new("RGB", (96, 64), (0, 0, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_corners(decode_image(data, 32))


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_tiny_and_thin_images(shape, resize):
    image = np.full((*shape, 3), (12, 34, 56), np.uint8)
    for data in (image, encoded(Image.fromarray(image), "PNG")):
        square = decode_image(data, 16, resize)
        assert square.shape == (16, 16, 3)
        np.testing.assert_array_equal(square, np.broadcast_to(np.uint8([12, 34, 56]), square.shape))


def test_crop_keeps_the_centre_and_the_aspect():
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    assert decode_image(pixels, 40, "crop", "area").min() == 255
    assert decode_image(pixels, 40, "stretch", "area").min() == 0


def test_truncated_files_are_rejected_by_name(tmp_path):
    data = encoded(Image.fromarray(photograph()), "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half\.jpg.*truncated"):
        decode_image(path, 224)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_truncated_files_of_other_formats(kind):
    data = encoded(Image.fromarray(photograph()), kind)
    with pytest.raises(ImageError, match="cut"):
        decode_image(data[: len(data) // 2], 64, name="cut")


def test_text_named_jpg(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not an image at all")
    with pytest.raises(ImageError, match=r"notes\.jpg: not in a supported image format.*not an image"):
        decode_image(path, 8)


def test_empty_missing_and_folder(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="empty"):
        decode_image(tmp_path / "empty.jpg", 8)
    with pytest.raises(ImageError, match="no such file"):
        decode_image(str(tmp_path / "gone.jpg"), 8)
    with pytest.raises(ImageError, match="folder"):
        decode_image(tmp_path, 8)


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_decompression_bomb(side):
    """A file of a hundred bytes that claims hundreds of millions of pixels is rejected before decoding."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="bomb"):
            decode_image(bytes(data), 8, name="bomb.png")


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "is empty", "a.jpg: is empty")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
    ],
)
def test_ambiguous_arrays_are_rejected(array):
    with pytest.raises(ImageError, match="array of"):
        decode_image(array, 8)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
def test_file_image_and_array_agree(tmp_path, resize, interpolation):
    """Also with scaled decoding: exact for lossless formats, within rounding and chroma subsampling for JPEG."""
    pixels = photograph()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    from_array = decode_image(pixels, 91, resize, interpolation)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 91, resize, interpolation), from_array)
    np.testing.assert_array_equal(decode_image(Image.fromarray(pixels), 91, resize, interpolation), from_array)

    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    full = np.asarray(Image.open(tmp_path / "a.jpg"))
    difference = np.abs(
        decode_image(tmp_path / "a.jpg", 91, resize, interpolation).astype(int)
        - decode_image(full, 91, resize, interpolation)
    )
    assert difference.mean() < 1
    assert difference.max() < 12


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    width=st.integers(8, 350),
    height=st.integers(8, 350),
    size=st.integers(12, 40),
    resize=st.sampled_from(["stretch", "crop"]),
)
def test_the_scaling_factor_of_the_jpeg_decoder_is_as_expected(width, height, size, resize):
    """A ramp reveals any shift or wrong scale, for every remainder of the division by 2, 4 and 8."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    ramp = np.stack([across, down, across], -1).astype(np.uint8)
    data = encoded(Image.fromarray(ramp), "JPEG", quality=100, subsampling=0)
    difference = decode_image(data, size, resize).astype(int) - decode_image(ramp, size, resize)
    # Sizes of a few pixels are excluded because the padding of the last JPEG block is visible.
    assert np.abs(difference).mean() < 1.5


def test_photographs_agree(shared_data):
    preprocessing = Preprocessing(224)
    for path in sorted((shared_data / "coco_mini" / "images").iterdir())[:8]:
        with Image.open(path) as image:
            full = preprocessing.load(np.asarray(image.convert("RGB"))).astype(int)
        difference = np.abs(preprocessing.load(path) - full)
        assert difference.mean() < 1
        assert difference.max() < 12


def test_the_image_of_the_caller_is_not_modified():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(photograph()), "JPEG")))
    decode_image(image, 16)
    assert image.size == (501, 377)
    assert image.getpixel((0, 0)) is not None


def test_large_photographs_equal_a_plain_resize():
    """The integer-factor step must not blur or shift, compared with one antialiased resize of the full image."""
    pixels = photograph(640, 480)
    expected = np.asarray(Image.fromarray(pixels).resize((100, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decode_image(pixels, 100) - expected).mean() < 2


def test_normalise_is_equal_in_numpy_and_jax():
    preprocessing = Preprocessing(8, mean=(127, 127, 127), std=(128, 64, 32))
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    on_host, on_device = preprocessing.normalise(image), preprocessing.normalise(jnp.asarray(image))
    assert on_host.dtype == np.float32 and on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, on_host, rtol=1e-6)
    np.testing.assert_allclose(on_host[0, 0], [(0 - 127) / 128, (1 - 127) / 64, (2 - 127) / 32], rtol=1e-6)


@pytest.mark.parametrize("shape", [(240, 320), (214, 320), (427, 640), (100, 90), (5, 300)])
def test_bicubic_equals_pillow_up_to_rounding(shape):
    pixels = photograph(shape[1], shape[0]) if min(shape) > 48 else photograph(300, 48)[: shape[0]]
    pillow = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(resize_to_square(pixels, 224, "stretch", "bicubic") - pillow)
    assert difference.mean() < 0.1
    assert difference.max() < 15


@pytest.mark.parametrize(("sides", "factor"), [((640, 427), 2), ((640, 400), 1), ((448, 448), 2), ((4000, 1700), 8)])
def test_the_shrunken_image_has_at_least_fifteen_sixteenths_of_the_size(sides, factor):
    assert choose_reduction_factor(*sides, 224) == factor


def test_grey_jpeg_and_jpeg_with_trailing_bytes():
    grey = encoded(corners().convert("L"), "JPEG")
    expected = np.asarray(corners().convert("L").convert("RGB").resize((32, 32))).astype(int)
    assert np.abs(decode_image(grey, 32) - expected).mean() < 4
    np.testing.assert_array_equal(decode_image(grey + b"rubbish", 32), decode_image(grey, 32))


def test_pixels_of_an_older_version_are_reported(caplog):
    stored = json.loads(Preprocessing(8).to_json())
    assert Preprocessing.from_json(json.dumps(stored)) == Preprocessing(8) and not caplog.text
    del stored["pixels"]
    assert Preprocessing.from_json(json.dumps(stored)) == Preprocessing(8)
    assert "version 1 of image preprocessing" in caplog.text


def test_preprocessing_survives_json():
    preprocessing = Preprocessing(260, "crop", "area", mean=(1, 2, 3), std=np.array([4.0, 5.0, 6.0]))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"resize": "squash"}, {"interpolation": "nearest"}, {"mean": (0.0,)}, {"std": (1, 1, 0)}]
)
def test_invalid_preprocessing_is_rejected(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Preprocessing(**bad)
