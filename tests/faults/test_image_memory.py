"""Decoding an image takes the memory that its header predicts, and images that are decoded together share a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hostile_images import BOMBS, encode, make_png
from image_memory import SIZE, Outcome, decode_in_child
from PIL import Image, features
from resident_memory import read_resident_mb

from input_pipeline.data_spec import DataSpec
from input_pipeline.decoding_memory import estimate_image
from input_pipeline.image_opening import open_image
from input_pipeline.images import Preprocessing
from input_pipeline.limits import DEFAULT_LIMITS
from input_pipeline.pixel_readers import make_pixels
from input_pipeline.records import Record, Split
from input_pipeline.resampling import choose_reduction_factor, estimate_resize

MB = 2**20
SIDE = 4000  # 16 megapixels
# Memory of a thread in addition to the estimate: strips of pixels, code, and small buffers of the decoders.
FIXED_MB = 48
SECONDS = 5.0  # "a few seconds"; decoding takes much less on a machine with no other load
MAX_SIDE = int(DEFAULT_LIMITS.image_pixels**0.5)


def make_photograph(mode: str = "RGB", width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Returns smooth random pixels, so that chroma and details are not constant."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def make_rgba(width: int = SIDE, height: int = SIDE) -> Image.Image:
    image = make_photograph(width=width, height=height)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def make_frames(image_format: str, frames: int) -> bytes:
    images = [make_photograph("P", 1500, 1500).rotate(90 * number) for number in range(4)] * (frames // 4)
    return encode(images[0], image_format, save_all=True, append_images=images[1:], duration=40)


IMAGES: dict[str, Callable[[], bytes]] = {
    "wide PNG": lambda: make_png(65_535, 400),
    "tall PNG": lambda: make_png(400, 65_535),
    "RGB PNG": lambda: make_png(SIDE, SIDE),
    "RGBA PNG": lambda: make_png(SIDE, SIDE, "RGBA"),
    "palette PNG with transparency": lambda: encode(make_photograph("P"), "PNG", transparency=3, compress_level=1),
    "16-bit greyscale PNG": lambda: make_png(SIDE, SIDE, "L", 16),
    "16-bit RGBA PNG": lambda: make_png(SIDE, SIDE, "RGBA", 16),
    "JPEG": lambda: encode(make_photograph(), "JPEG"),
    "progressive JPEG": lambda: encode(make_photograph(), "JPEG", progressive=True),
    "progressive JPEG without subsampling": lambda: encode(make_photograph(), "JPEG", progressive=True, subsampling=0),
    "CMYK JPEG": lambda: encode(make_photograph("CMYK"), "JPEG"),
    "progressive CMYK JPEG": lambda: encode(make_photograph("CMYK"), "JPEG", progressive=True),
    "MPO": lambda: encode(
        make_photograph(), "MPO", save_all=True, append_images=[make_photograph(width=90, height=90)]
    ),
    "GIF": lambda: encode(make_photograph("P"), "GIF"),
    "animated GIF": lambda: make_frames("GIF", 40),
    "BMP": lambda: encode(make_photograph(), "BMP"),
    "WebP": lambda: encode(make_photograph(), "WEBP", method=0),
    "animated WebP": lambda: make_frames("WEBP", 12),
    "TIFF in strips": lambda: encode(make_photograph(), "TIFF", compression="tiff_lzw"),
    "tiled TIFF": lambda: encode(make_photograph(), "TIFF", compression="jpeg", tiffinfo={322: 256, 323: 256}),
    "TIFF of CMYK": lambda: encode(make_photograph("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
    "JPEG 2000": lambda: encode(make_rgba(2000, 2000), "JPEG2000", quality_mode="rates", quality_layers=[40]),
    "AVIF": lambda: encode(make_rgba(), "AVIF", speed=10, subsampling="4:4:4"),
}


def predict_mb(data: bytes) -> float:
    """Returns the memory that the header predicts, in MB."""
    with open_image(data, "image", DEFAULT_LIMITS) as (image, scans):
        factor = choose_reduction_factor(*image.size, SIZE)
        size = estimate_image(image, scans, factor)
        return (size + estimate_resize(image.width // factor, image.height // factor, SIZE)) / MB


def decode(data: bytes, tmp_path: Path, action: str = "decode", **options) -> Outcome:
    path = tmp_path / "image"
    path.write_bytes(data)
    outcome = decode_in_child(path, action, **options)
    print(f"{action}: {outcome}")  # `-s` shows the figures of docs/images.md
    return outcome


_QUICK = ("tall PNG", "RGBA PNG", "JPEG", "progressive JPEG", "WebP")  # each decoder's kind once; the others are slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in IMAGES]
)
def test_memory_is_what_the_header_predicts(name, tmp_path):
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this installation of Pillow cannot write AVIF")
    data = IMAGES[name]()
    predicted, file_mb = predict_mb(data), len(data) / MB
    for action in ("decode", "thumbnail"):
        outcome = decode(data, tmp_path, action)
        assert not outcome.error and outcome.seconds < SECONDS
        # A file of up to 16 MB is read before it is decoded, and some decoders copy it.
        assert outcome.memory_mb < predicted + 2 * file_mb + FIXED_MB, predicted


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_expand_or_consist_of_many_parts_are_cheap(name, tmp_path):
    outcome = decode(BOMBS[name](), tmp_path)
    assert outcome.seconds < SECONDS and outcome.memory_mb < 100


@pytest.mark.slow
def test_large_images_are_not_decoded_at_the_same_time(tmp_path):
    """Six threads decode copies of an image that needs 350 MB of the 1,536 MB of the budget."""
    side, threads = 9000, 6
    outcome = decode(make_png(side, side, "RGBA"), tmp_path, f"decode {threads}", timeout=200)
    one = 4 * side**2 / MB
    assert not outcome.error
    assert one * 2 < outcome.memory_mb < DEFAULT_LIMITS.decoding_bytes / MB + threads * FIXED_MB
    assert threads * one > DEFAULT_LIMITS.decoding_bytes / MB + threads * FIXED_MB  # without a budget


@pytest.mark.skipif(not list(Path("/proc/self/task").glob("*/children")), reason="needs the children in /proc")
def test_decoding_processes_share_the_budget(tmp_path):
    """Three processes decode images that need 96 MB each, one at a time because the budget is 120 MB."""
    (tmp_path / "image.png").write_bytes(make_png(5000, 5000, "RGBA"))
    split = Split("train", [Record(tmp_path / "image.png", ("a",), number) for number in range(9)])
    limits = dataclasses.replace(DEFAULT_LIMITS, decoding_bytes=120 * MB)
    spec = DataSpec(workers=3, worker_type="processes")
    with contextlib.closing(make_pixels(split, Preprocessing(SIZE, limits=limits), spec)) as pixels:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(pixels.load_rows, [[0]] * 3, [[0]] * 3))  # starts the processes
            before = read_total_mb(find_children())
            futures = [pool.submit(pixels.load_rows, [index], [0]) for index in range(9)]
            peak = before
            while not all(future.done() for future in futures):
                peak = max(peak, read_total_mb(find_children()))
                time.sleep(0.005)
        assert not any(future.result()[1] for future in futures)
    assert 48 < peak - before < 96 + 3 * 16


def read_total_mb(pids: list[str]) -> float:
    """Returns the resident memory of processes in MB, without memory that moves from one to the next meanwhile.

    Each process is read twice, in both orders, and the smaller value counts: of two processes that take turns, one has
    little memory in one of its readings.
    """
    first = [read_resident_mb(pid) for pid in pids]
    second = [read_resident_mb(pid) for pid in reversed(pids)][::-1]
    return sum(map(min, first, second))


def find_children() -> list[str]:
    """Returns the IDs of the child processes of this process."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return [pid for text in lists for pid in text.split()]


AT_THE_LIMIT: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: make_png(MAX_SIDE, MAX_SIDE),
    "RGBA PNG": lambda: make_png(MAX_SIDE, MAX_SIDE, "RGBA"),
    "widest PNG": lambda: make_png(65_535, 3_814, "RGBA"),
    "tallest PNG": lambda: make_png(3_814, 65_535, "RGBA"),
    "palette PNG": lambda: make_png(MAX_SIDE, MAX_SIDE, "P"),
    "16-bit PNG": lambda: make_png(MAX_SIDE, MAX_SIDE, "L", 16),
    "JPEG of a telephone, 200 megapixels": lambda: encode(make_photograph(width=16_320, height=12_240), "JPEG"),
    "progressive JPEG": lambda: encode(make_photograph(width=MAX_SIDE, height=MAX_SIDE), "JPEG", progressive=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_images_at_the_pixel_limit_are_decoded_within_the_budget(name, tmp_path):
    data = AT_THE_LIMIT[name]()
    for action in ("decode", "thumbnail"):
        outcome = decode(data, tmp_path, action)
        assert not outcome.error and outcome.seconds < 4 * SECONDS  # this machine may have other work
        assert outcome.memory_mb < DEFAULT_LIMITS.decoding_bytes / MB


@pytest.mark.parametrize(("width", "height"), [(1, 20_000_000), (20_000_000, 1), (1, 5_000_000), (16_000, 16_000)])
def test_images_above_a_limit_are_rejected_from_their_header(width, height, tmp_path):
    outcome = decode(make_png(width, height, "L"), tmp_path)
    assert "config.limits.image_" in outcome.error and f"{height:,}" in outcome.error
    assert outcome.memory_mb < 10 and outcome.seconds < 1


def test_large_files_are_not_read_before_their_header_is_checked(tmp_path):
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(make_png(30_000, 30_000, "L"))
        file.truncate(200 * MB)  # sparse
    outcome = decode_in_child(path)
    assert "config.limits.image_pixels" in outcome.error and outcome.memory_mb < 10
    with path.open("r+b") as file:
        file.truncate(DEFAULT_LIMITS.image_file_bytes + 1)
    outcome = decode_in_child(path)
    assert "config.limits.image_file_bytes" in outcome.error and outcome.memory_mb < 10


def test_the_header_of_a_large_file_may_be_read_lazily(tmp_path):
    """A file above the size that is read at once has the same pixels as its content."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "TIFF")
    assert len(buffer.getvalue()) > 16 * MB
    outcome = decode(buffer.getvalue(), tmp_path)
    assert not outcome.error and outcome.memory_mb < 22 + FIXED_MB
