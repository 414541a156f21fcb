"""Images of all formats, modes and orientations are decoded, or rejected with an error that names them."""

from __future__ import annotations

import io
import json
import pickle
import struct
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


def make_corners(width=96, height=64) -> Image.Image:
    """An image with a red top left, green top right, blue bottom left and white bottom right quadrant."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return Image.fromarray(pixels)


def encode(image: Image.Image, format_name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def assert_corners(pixels: np.ndarray) -> None:
    """Asserts that square pixels have the colours of `make_corners`."""
    size = pixels.shape[0]
    low, high = size // 4, size - 1 - size // 4
    actual = pixels[[low, low, high, high], [low, high, low, high]].astype(int)
    np.testing.assert_allclose(actual, [RED, GREEN, BLUE, WHITE], atol=12)


def make_photograph(width=501, height=377) -> np.ndarray:
    """Random pixels with the statistics of a photograph: smooth colours and some texture."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_common_formats_are_decoded(format_name):
    assert_corners(decode_image(encode(make_corners(), format_name), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_exif_orientation_is_applied(orientation, resize):
    # The inverse of the operation that a viewer applies for each orientation.
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = make_corners() if inverse is None else make_corners().transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "JPEG", quality=95, exif=exif)
    assert_corners(decode_image(data, 24, resize))
    assert_corners(decode_image(Image.open(io.BytesIO(data)), 24, resize))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_thumbnails_are_upright_keep_their_aspect_ratio_and_are_never_enlarged(format_name):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encode(make_corners(960, 640).transpose(Image.Transpose.ROTATE_90), format_name, exif=exif)
    small = make_thumbnail(rotated, 120)
    assert small.shape == (80, 120, 3)
    assert_corners(np.asarray(Image.fromarray(small).resize((80, 80))))
    assert make_thumbnail(encode(make_corners(), format_name), 400).shape == (64, 96, 3)
    image = make_corners()
    assert make_thumbnail(image, 48).shape == (32, 48, 3) and image.size == (96, 64)
    with pytest.raises(ImageError, match=r"a\.jpg: .*empty"):
        make_thumbnail(b"", 100, name="a.jpg")


def test_images_with_damaged_exif_are_decoded():
    assert_corners(decode_image(encode(make_corners(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), 32))


def test_cmyk_is_converted_to_rgb():
    assert_corners(decode_image(encode(make_corners().convert("CMYK"), "JPEG", quality=95), 32))


def test_16_bit_pixels_are_scaled_to_8_bits():
    levels = np.array([[0, 257 * 40, 257 * 128, 65535]], np.uint16).repeat(4, 0)
    expected = np.array([0, 40, 128, 255])
    from_file = decode_image(encode(Image.fromarray(levels), "PNG"), 4)
    np.testing.assert_array_equal(from_file, np.broadcast_to(expected[None, :, None], (4, 4, 3)))
    np.testing.assert_array_equal(decode_image(levels, 4), from_file)


def test_16_bit_colours_are_scaled_to_8_bits():
    def make_chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixel = np.array([65535, 257 * 128, 0], ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", header)
        + make_chunk(b"IDAT", zlib.compress(b"\0" + pixel))
        + make_chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode_image(png, 1), [[[255, 128, 0]]])


def test_floating_point_pixels_are_rejected():
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode_image(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 4, name="scan.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_composited_over_white(mode):
    image = Image.new(mode, (8, 8), 0)
    image.putpixel((0, 0), (0, 0, 0, 255) if mode == "RGBA" else (0, 255))
    pixels = decode_image(encode(image, "PNG"), 8)
    assert tuple(pixels[0, 0]) == (0, 0, 0)
    assert tuple(pixels[7, 7]) == WHITE


def test_a_transparent_palette_colour_is_composited_over_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 30, 30])
    image.putpixel((0, 0), 1)
    pixels = decode_image(encode(image, "PNG", transparency=0), 8)
    assert tuple(pixels[0, 0]) == (200, 30, 30)
    assert tuple(pixels[7, 7]) == WHITE


def test_translucent_palette_colours_are_composited_over_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encode(image, "PNG", transparency=bytes([255, 128])), 2)
    assert pixels[0, 0, 0] == 0
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1


def test_the_first_frame_of_an_animation_is_decoded():
    frames = [make_corners(), Image.new("RGB", (96, 64), (0, 0, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_corners(decode_image(data, 32))


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_tiny_and_thin_images_are_resized(shape, resize):
    image = np.full((*shape, 3), (12, 34, 56), np.uint8)
    for source in (image, encode(Image.fromarray(image), "PNG")):
        pixels = decode_image(source, 16, resize)
        assert pixels.shape == (16, 16, 3)
        np.testing.assert_array_equal(pixels, np.broadcast_to(np.uint8([12, 34, 56]), pixels.shape))


def test_crop_keeps_the_centre_and_stretch_keeps_the_whole_image():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255
    assert decode_image(image, 40, "crop", "area").min() == 255
    assert decode_image(image, 40, "stretch", "area").min() == 0


def test_errors_for_truncated_jpeg_files_name_the_file(tmp_path):
    data = encode(Image.fromarray(make_photograph()), "JPEG")
    path = tmp_path / "partial.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"partial\.jpg.*truncated"):
        decode_image(path, 224)


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "TIFF"])
def test_errors_for_truncated_files_of_other_formats_name_the_file(format_name):
    data = encode(Image.fromarray(make_photograph()), format_name)
    with pytest.raises(ImageError, match="partial"):
        decode_image(data[: len(data) // 2], 64, name="partial")


def test_text_files_are_rejected(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("some text")
    with pytest.raises(ImageError, match=r"notes\.jpg: not in a supported image format \(the file contains text\)"):
        decode_image(path, 8)


def test_empty_files_missing_files_and_folders_are_rejected(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="empty"):
        decode_image(tmp_path / "empty.jpg", 8)
    with pytest.raises(ImageError, match="no such file"):
        decode_image(str(tmp_path / "missing.jpg"), 8)
    with pytest.raises(ImageError, match="folder"):
        decode_image(tmp_path, 8)


@pytest.mark.parametrize("side", [16_000, 60_000])
def test_decompression_bombs_are_rejected(side):
    """The header of a small file declares hundreds of millions of pixels or more."""
    data = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageError, match=r"bomb\.png: declares .* more than the limit of 250,000,000 pixels"):
        decode_image(bytes(data), 8, name="bomb.png")


def test_image_errors_can_be_pickled():
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
def test_unsupported_arrays_are_rejected(array):
    with pytest.raises(ImageError, match="array of"):
        decode_image(array, 8)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
def test_files_images_and_arrays_give_the_same_pixels(tmp_path, resize, interpolation):
    """Pixels of lossless formats are equal. Those of JPEG differ by rounding and chroma subsampling."""
    pixels = make_photograph()
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
def test_scaled_jpeg_decoding_does_not_shift_or_rescale_the_image(width, height, size, resize):
    """Shifts and scaling errors are visible in a linear gradient, for sides with any remainder modulo 2, 4 and 8.

    Images of a few pixels are excluded because the padding of the last JPEG block affects them.
    """
    horizontal = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    vertical = np.linspace(255, 0, height)[:, None].repeat(width, 1)
    image = np.stack([horizontal, vertical, horizontal], -1).astype(np.uint8)
    data = encode(Image.fromarray(image), "JPEG", quality=100, subsampling=0)
    difference = decode_image(data, size, resize).astype(int) - decode_image(image, size, resize)
    assert np.abs(difference).mean() < 1.5


def test_scaled_decoding_of_photographs_matches_full_decoding(shared_data):
    preprocessing = Preprocessing(224)
    for path in sorted((shared_data / "coco_mini" / "images").iterdir())[:8]:
        with Image.open(path) as image:
            full = preprocessing.load(np.asarray(image.convert("RGB"))).astype(int)
        difference = np.abs(preprocessing.load(path) - full)
        assert difference.mean() < 1
        assert difference.max() < 12


def test_decoding_does_not_modify_the_input_image():
    image = Image.open(io.BytesIO(encode(Image.fromarray(make_photograph()), "JPEG")))
    decode_image(image, 16)
    assert image.size == (501, 377)
    assert image.getpixel((0, 0)) is not None


def test_resizing_in_two_steps_matches_resizing_in_one():
    """Reduction by an integer factor before resampling does not blur or shift the image."""
    pixels = make_photograph(640, 480)
    expected = np.asarray(Image.fromarray(pixels).resize((100, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decode_image(pixels, 100) - expected).mean() < 2


def test_normalise_gives_equal_results_for_numpy_and_jax():
    preprocessing = Preprocessing(8, mean=(127, 127, 127), std=(128, 64, 32))
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    on_host, on_device = preprocessing.normalise(image), preprocessing.normalise(jnp.asarray(image))
    assert on_host.dtype == np.float32 and on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, on_host, rtol=1e-6)
    np.testing.assert_allclose(on_host[0, 0], [(0 - 127) / 128, (1 - 127) / 64, (2 - 127) / 32], rtol=1e-6)


@pytest.mark.parametrize("shape", [(240, 320), (214, 320), (427, 640), (100, 90), (5, 300)])
def test_bicubic_matches_pillow_up_to_rounding(shape):
    pixels = make_photograph(shape[1], shape[0]) if min(shape) > 48 else make_photograph(300, 48)[: shape[0]]
    pillow = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(resize_to_square(pixels, 224, "stretch", "bicubic") - pillow)
    assert difference.mean() < 0.1
    assert difference.max() < 15


@pytest.mark.parametrize(("sides", "factor"), [((640, 427), 2), ((640, 400), 1), ((448, 448), 2), ((4000, 1700), 8)])
def test_reduction_leaves_at_least_the_minimum_fraction_of_the_target_size(sides, factor):
    assert choose_reduction_factor(*sides, 224) == factor


def test_greyscale_jpeg_and_trailing_bytes_are_supported():
    data = encode(make_corners().convert("L"), "JPEG")
    expected = np.asarray(make_corners().convert("L").convert("RGB").resize((32, 32))).astype(int)
    assert np.abs(decode_image(data, 32) - expected).mean() < 4
    np.testing.assert_array_equal(decode_image(data + b"trailing bytes", 32), decode_image(data, 32))


def test_preprocessing_of_an_older_version_is_reported(caplog):
    stored = json.loads(Preprocessing(8).to_json())
    assert Preprocessing.from_json(json.dumps(stored)) == Preprocessing(8) and not caplog.text
    del stored["pixels"]
    assert Preprocessing.from_json(json.dumps(stored)) == Preprocessing(8)
    assert "version 1 of image preprocessing" in caplog.text


def test_preprocessing_round_trips_through_json():
    preprocessing = Preprocessing(260, "crop", "area", mean=(1, 2, 3), std=np.array([4.0, 5.0, 6.0]))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    "setting",
    [{"size": 0}, {"resize": "squash"}, {"interpolation": "nearest"}, {"mean": (0.0,)}, {"std": (1, 1, 0)}],
)
def test_invalid_preprocessing_is_rejected(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Preprocessing(**setting)
