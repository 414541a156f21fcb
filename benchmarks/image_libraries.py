"""CPU time per image of libraries that decode or resize JPEG images, in a single-threaded loop.

    python -m benchmarks.image_libraries [--root=FOLDER] [--size=224] [--rounds=5]

simplejpeg (our decoder) and kornia-rs (our resizer) are compared with Pillow and, if installed, OpenCV and imagecodecs.
kornia-rs's own JPEG decoder (zune-jpeg, in Rust) is also timed. At 1/8 scale, a decoder computes a single pixel per
block, so most of the time is spent on Huffman decoding, which is required at every scale. FOLDER contains photographs
(.jpg) and defaults to ../shared/data/coco_mini/images. Results are medians over alternating rounds. The last line is
JSON. `ratio` is the lowest, over all tasks, of the fastest peer's time divided by ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from kornia_rs import imgproc
from kornia_rs import io as kornia_io
from PIL import Image

from benchmarks.alternate import Seconds, print_result, take_median, time_call
from benchmarks.conditions import Conditions
from benchmarks.input_pipeline import PHOTOGRAPHS
from benchmarks.peers.image_loaders import list_images

ImageFunction = Callable[[Any], Any]


def make_decoders() -> dict[str, dict[str, ImageFunction]]:
    """Returns functions from JPEG bytes to pixels, by task and library. The first is the one that we use."""

    def pillow_decode(data: bytes, factor: int) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        return np.asarray(image.convert("RGB"))

    def simplejpeg_decode(data: bytes, factor: int) -> np.ndarray:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return simplejpeg.decode_jpeg(data, min_width=-(-width // factor), min_height=-(-height // factor))

    factors = {"decode": 1, "decode at 1/2": 2, "decode at 1/8": 8}
    decoders: dict[str, dict[str, ImageFunction]] = {
        task: {
            "simplejpeg": functools.partial(simplejpeg_decode, factor=factor),
            "Pillow": functools.partial(pillow_decode, factor=factor),
        }
        for task, factor in factors.items()
    }
    decoders["decode"]["kornia-rs"] = kornia_io.decode_image_jpeg
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        for task, flag in (("decode", cv2.IMREAD_COLOR_RGB), ("decode at 1/2", cv2.IMREAD_REDUCED_COLOR_2)):
            decoders[task]["OpenCV"] = lambda data, flag=flag: cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        decoders["decode"]["imagecodecs"] = imagecodecs.jpeg8_decode
    return decoders


def make_resizers(size: int) -> dict[str, ImageFunction]:
    """Returns functions that resize pixels to a square with antialiasing, by library. The first is the one that we use.

    The interpolation is bicubic, except that OpenCV averages areas.
    """
    square = (size, size)
    resizers: dict[str, ImageFunction] = {
        "kornia-rs": lambda pixels: imgproc.resize(pixels, square, "bicubic", antialias=True),
        "Pillow": lambda pixels: np.asarray(Image.fromarray(pixels).resize(square, Image.Resampling.BICUBIC)),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        resizers["OpenCV, area"] = lambda pixels: cv2.resize(pixels, square, interpolation=cv2.INTER_AREA)
    return resizers


def measure(functions: dict[str, ImageFunction], images: list[Any], rounds: int) -> dict[str, Seconds]:
    """Returns the median times of each function for all images. The first round is a warm-up."""
    times: dict[str, list[Seconds]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            times[name].append(time_call(_call_for_each, function, images)[0])
    return {name: take_median(runs[1:]) for name, runs in times.items()}


def _call_for_each(function: ImageFunction, images: list[Any]) -> None:
    for image in images:
        function(image)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files = [Path(path).read_bytes() for path in sorted(set(list_images(options.root, 80)))]
    decoders, resizers = make_decoders(), make_resizers(options.size)
    full_images = [simplejpeg.decode_jpeg(data) for data in files]
    half_images = [decoders["decode at 1/2"]["simplejpeg"](data) for data in files]
    tasks = {task: (functions, files) for task, functions in decoders.items()}
    tasks["resize full-size"] = (resizers, full_images)
    tasks["resize half-size"] = (resizers, half_images)
    conditions, comparisons = Conditions(), {}
    for task, (functions, images) in tasks.items():
        with conditions.measured():
            times = measure(functions, images, options.rounds)
        milliseconds = {name: 1e3 * elapsed.cpu / len(images) for name, elapsed in times.items()}
        descriptions = (
            f"{name} {milliseconds[name]:.2f} ms (wall time {1e3 * elapsed.wall / len(images):.2f} ms)"
            for name, elapsed in times.items()
        )
        print(f"{task:16}", ", ".join(descriptions), flush=True)
        (_, ours), *others = milliseconds.items()
        for name, value in others:
            comparisons[f"{task}: {name}"] = {"ours": ours, "peer": value, "ratio": value / ours}
    print_result("image_libraries", comparisons, "ms", conditions)


if __name__ == "__main__":
    main()
