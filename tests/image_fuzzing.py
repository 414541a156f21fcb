"""Decodes randomly damaged images in a process of its own, and measures time and memory.

python -m image_fuzzing --inputs=60000 --seed=0 --last=FILE

prints a JSON object with the counts, the peak of memory and the slowest input. Each input is written to FILE before it
is decoded, so that FILE has the input at fault if the process crashes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import hostile_images
import numpy as np
from image_memory import ROOT, peak_mb
from PIL import Image, features

from input_pipeline.images import ImageError, decode_image, make_thumbnail
from input_pipeline.limits import Limits

# Sizes up to these limits are decoded: small enough for thousands of inputs per minute.
LIMITS = Limits(image_pixels=1_000_000, decoding_bytes=32 * 2**20)
MAX_MEMORY_MB = 150  # of all inputs, above that for intact images: the limit, strips, and buffers of the decoders
SIDE = 16
_MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "GIF": ("P", "L"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "P", "1"),
    "TIFF": ("RGB", "RGBA", "CMYK", "L", "1", "I;16"),
    "PPM": ("RGB", "L", "1", "I;16"),
    "JPEG2000": ("RGB", "RGBA", "L"),
    "AVIF": ("RGB", "RGBA"),
}
_OPTIONS = {
    "JPEG": ({}, {"progressive": True}, {"subsampling": 0, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    "TIFF": tuple({"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
    "WEBP": ({}, {"lossless": True}),
}
_INTEGERS = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 4096, 32767, 65535, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class FuzzingResult:
    """Outcome of `fuzz_in_child`.

    Attributes:
        inputs: number of inputs.
        readable: number of inputs that were decoded.
        memory_mb: peak of the memory of the process, in MB, minus that after it has decoded intact images.
        seconds: wall time.
        slowest: seconds of the slowest input.
        longest_reason: the longest message.
    """

    inputs: int
    readable: int
    memory_mb: float
    seconds: float
    slowest: float
    longest_reason: str


def fuzz_in_child(inputs: int, seed: int, last: Path) -> FuzzingResult:
    """Decodes damaged images in a child process. Fails if it crashes; `last` then contains the input at fault."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    arguments = [f"--inputs={inputs}", f"--seed={seed}", f"--last={last}"]
    process = subprocess.run(
        [sys.executable, "-m", "image_fuzzing", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,  # libtiff prints messages about damaged files
        text=True,
        check=False,
    )
    assert process.returncode == 0, f"status {process.returncode}, input in {last}: {process.stderr[-2000:]}"
    return FuzzingResult(**json.loads(process.stdout))


@functools.cache
def make_corpus() -> tuple[bytes, ...]:
    """Returns small intact images of all formats and modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 4), np.uint8)
    corpus = []
    for image_format, modes in _MODES.items():
        if image_format == "AVIF" and not features.check("avif"):
            continue
        for mode in modes:
            image = (
                Image.fromarray(pixels)
                .convert("RGB" if mode in ("P", "CMYK") else "RGBA")
                .convert("L" if mode == "I;16" else mode)
            )
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            for options in _OPTIONS.get(image_format, ({},)):
                corpus.append(hostile_images.encode(image, image_format, **options))
    image = Image.fromarray(pixels[..., :3])
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    corpus += [hostile_images.encode(image, image_format, **frames) for image_format in ("GIF", "WEBP", "MPO", "PNG")]
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener  # also adds the encoder

        register_heif_opener()
        corpus += [hostile_images.encode(Image.fromarray(pixels).convert(mode), "HEIF") for mode in ("RGB", "RGBA")]
    return tuple(corpus)


@functools.cache
def make_hostile() -> tuple[bytes, ...]:
    """Returns small versions of the files in `hostile_images.BOMBS`."""
    return (
        hostile_images.repeat_scans(64, 20),
        hostile_images.make_text_bomb(10_000),
        hostile_images.make_profile_bomb(10_000),
        hostile_images.make_gif_comment(50),
        hostile_images.make_pnm_comments(50),
        hostile_images.make_slow_pnm(20, 20),
        hostile_images.make_wide_tile(64),
        hostile_images.make_tag_bomb(16),
    )


def damage(rng: random.Random) -> bytes:
    """Returns an image with one to four random changes, or a header that declares a random size."""
    if rng.random() < 0.1:
        data = hostile_images.declare_size(rng.choice(hostile_images.SIZED_FORMATS), _draw_size(rng), _draw_size(rng))
        return data if rng.random() < 0.5 else _change(rng, data)
    data = rng.choice(make_corpus() + make_hostile())
    for _ in range(rng.randint(1, 4)):
        data = _change(rng, data)
    return _fix_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.8 else data


def _draw_size(rng: random.Random) -> int:
    return rng.choice((rng.randint(1, 1000), rng.randint(1, 2**17), max(rng.choice(_INTEGERS), 1)))


def _change(rng: random.Random, data: bytes) -> bytes:
    start = min(int(rng.random() ** 2 * len(data)), max(len(data) - 1, 0))  # more often in the header
    end = start + rng.randint(1, 8)
    kind = rng.randrange(8)
    if kind == 0:
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 1:
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :] if data else data
    if kind == 2:
        return data[:start] + rng.randbytes(end - start) + data[start:]
    if kind == 3:
        return data[:start] + data[end:]
    if kind == 4:
        return data[:start] if rng.random() < 0.3 else data[: rng.randint(0, len(data))] + data[start:]
    if kind == 5:
        other = rng.choice(make_corpus())
        position = rng.randrange(len(other))
        return data[:start] + other[position : position + rng.randint(1, 60)] + data[end:]
    code = rng.choice((">H", "<H", ">I", "<I"))
    value = rng.choice(_INTEGERS) % 2 ** (16 if code[1] == "H" else 32)
    return data[:start] + struct.pack(code, value) + data[start + struct.calcsize(code) :]


def _fix_checksums(data: bytes) -> bytes:
    """Returns a PNG with valid checksums, so that damaged chunks are parsed."""
    result, position = [data[:8]], 8
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        chunk = data[position + 4 : position + 8 + size]
        if len(chunk) < 4 + size:
            break
        result.append(struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        position += 12 + size
    return b"".join([*result, data[position:]])


def check_image(data: bytes, limits: Limits = LIMITS) -> str:
    """Decodes an image and makes its thumbnail. Returns the reason if it is rejected, or ""; other errors propagate."""
    try:
        pixels = decode_image(data, SIDE, name="damaged", limits=limits)
        thumbnail = make_thumbnail(data, SIDE, name="damaged", limits=limits)
    except ImageError as error:
        assert str(error).startswith("damaged: ") and "\n" not in str(error)
        return error.reason
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    assert thumbnail.ndim == 3 and max(thumbnail.shape[:2]) <= SIDE
    return ""


def main() -> None:
    """Runs in the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--last", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
    assert not any(check_image(data) for data in make_corpus()), "the corpus is not readable"
    before, start, rng = peak_mb(), time.perf_counter(), random.Random(options.seed)
    slowest, readable, longest_reason = 0.0, 0, ""
    with options.last.open("wb", buffering=0) as file:
        for _ in range(options.inputs):
            data = damage(rng)
            file.seek(0)
            file.write(data)
            file.truncate()
            input_start = time.perf_counter()
            reason = check_image(data)
            slowest = max(slowest, time.perf_counter() - input_start)
            readable += not reason
            longest_reason = max(longest_reason, reason, key=len)
    memory, seconds = peak_mb() - before, time.perf_counter() - start
    print(json.dumps(FuzzingResult(options.inputs, readable, memory, seconds, slowest, longest_reason).__dict__))


if __name__ == "__main__":
    main()
