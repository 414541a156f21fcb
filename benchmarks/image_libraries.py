"""CPU time per image of libraries that decode or resize JPEG images, each in a plain single-threaded loop.

    python -m benchmarks.image_libraries [--root=FOLDER] [--size=224] [--rounds=5]

It justifies the libraries of `input_pipeline.images` and `input_pipeline.resampling`: simplejpeg and kornia-rs. They
are compared with Pillow, with OpenCV and imagecodecs if installed, and with the decoder of kornia-rs (zune-jpeg, in
Rust). At one eighth a decoder produces a single pixel per block, so that cell measures Huffman decoding, which no scale
avoids. FOLDER contains photographs (.jpg); the default is the development data next to the checkout. Rounds alternate
and the median counts. The last line is JSON; its `ratio` is that of the worst cell, the time of a library over ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from kornia_rs import imgproc
from kornia_rs import io as kornia_io
from PIL import Image

from benchmarks.alternate import print_result
from benchmarks.input_pipeline import PHOTOGRAPHS
from benchmarks.peers.image_loaders import recycled

Work = Callable[[Any], Any]


def decoders() -> dict[str, dict[str, Work]]:
    """Decoders from JPEG bytes to pixels at full and at reduced size. The first of each is ours."""

    def pillow(data: bytes, factor: int) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        return np.asarray(image.convert("RGB"))

    def simplejpeg_decode(data: bytes, factor: int) -> np.ndarray:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))

    factors = {"decode": 1, "decode at a half": 2, "decode at an eighth": 8}
    result: dict[str, dict[str, Work]] = {
        kind: {
            "simplejpeg": functools.partial(simplejpeg_decode, factor=factor),
            "Pillow": functools.partial(pillow, factor=factor),
        }
        for kind, factor in factors.items()
    }
    result["decode"]["kornia-rs"] = kornia_io.decode_image_jpeg
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        for kind, flag in (("decode", cv2.IMREAD_COLOR_RGB), ("decode at a half", cv2.IMREAD_REDUCED_COLOR_2)):
            result[kind]["OpenCV"] = lambda data, flag=flag: cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        result["decode"]["imagecodecs"] = imagecodecs.jpeg8_decode
    return result


def resizers(size: int) -> dict[str, Work]:
    """Antialiased resizing to a square, bicubic except for OpenCV's area interpolation. The first is ours."""
    square = (size, size)
    result: dict[str, Work] = {
        "kornia-rs": lambda pixels: imgproc.resize(pixels, square, "bicubic", antialias=True),
        "Pillow": lambda pixels: np.asarray(Image.fromarray(pixels).resize(square, Image.Resampling.BICUBIC)),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        result["OpenCV, area"] = lambda pixels: cv2.resize(pixels, square, interpolation=cv2.INTER_AREA)
    return result


def measure(libraries: dict[str, Work], items: list[Any], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU time per item; the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(rounds + 1):
        for name, work in libraries.items():
            start = time.process_time()
            for item in items:
                work(item)
            times[name].append(1000 * (time.process_time() - start) / len(items))
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files = [Path(path).read_bytes() for path in sorted(set(recycled(options.root, 80)))]
    whole = [simplejpeg.decode_jpeg(data) for data in files]
    half = [decoders()["decode at a half"]["simplejpeg"](data) for data in files]
    tasks = {kind: (libraries, files) for kind, libraries in decoders().items()}
    tasks["resize the whole"] = (resizers(options.size), whole)
    tasks["resize the half"] = (resizers(options.size), half)
    cells = {}
    for task, (libraries, items) in tasks.items():
        times = measure(libraries, items, options.rounds)
        print(f"{task:19}", ", ".join(f"{name} {value:.2f} ms" for name, value in times.items()), flush=True)
        ours, *others = times.items()
        for name, value in others:
            cells[f"{task}: {name}"] = {"ours": ours[1], "peer": value, "ratio": value / ours[1]}
    print_result("image_libraries", cells, "ms")


if __name__ == "__main__":
    main()
