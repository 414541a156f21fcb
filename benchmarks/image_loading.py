"""Images a second from files to batches, against a bare loop that only opens and resizes them with Pillow.

    python -m benchmarks.image_loading --root=PHOTOGRAPHS [--size=224] [--workers=2] [--count=500]

Prints processor time an image for both (all threads of this process; steady on a busy machine) and their ratio, which
is what the pipeline costs, or saves by decoding large JPEGs at a fraction, and images a second of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from caption_jax.config import default_config
from input_pipeline.batches import eval_batches
from input_pipeline.images import IMAGE_SUFFIXES, Preprocessing
from input_pipeline.prefetch import prefetch_to_device
from input_pipeline.records import Record, Split


class Words:
    """Stands for a vocabulary: captions are encoded once a run, which is not what is measured here."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        """Returns <s> </s> and pads."""
        return np.array([0, 2] + [1] * (max_length - 2), np.int32)


def bare_loop(paths: list[Path], size: int) -> None:
    """The peer: what a few lines of Pillow do, a whole decode and a bicubic resize, kept as an array."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def pipeline(split: Split, size: int, workers: int) -> None:
    """One pass through the pipeline, from its first thread to its last batch."""
    data = default_config().data
    data.workers = workers
    for _ in prefetch_to_device(eval_batches(split, Preprocessing(size), Words(), data), None, 2):
        pass


def timed(function: Callable, *arguments) -> tuple[float, float]:
    """Returns (wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(paths: list[Path], size: int, workers: int, rounds: int) -> Iterator[str]:
    """Runs both in turns, so that a busy moment of the machine hits both."""
    split = Split("train", [Record(path, ("",), number) for number, path in enumerate(paths)])
    ours, peer = [], []
    for _ in range(rounds + 1):
        peer.append(timed(bare_loop, paths, size))
        ours.append(timed(pipeline, split, size, workers))
    rows = {"bare Pillow loop": peer[1:], f"pipeline, {workers} workers": ours[1:]}  # the first of each warms up
    medians = []
    for name, times in rows.items():
        wall, processor = (statistics.median(column) / len(paths) for column in zip(*times, strict=True))
        medians.append(processor)
        yield f"{name:24} {1000 * processor:6.2f} ms of processor an image, {1 / wall:7.0f} images/s"
    yield f"ratio (bare / pipeline)  {medians[0] / medians[1]:6.2f}"


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of images")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    paths = sorted(path for path in options.root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[: options.count]
    if not paths:
        parser.error(f"no images in {options.root}")
    print(f"{len(paths)} images of {options.root} to {options.size} x {options.size}, {options.rounds} rounds")
    for line in measure(paths, options.size, options.workers, options.rounds):
        print(line)


if __name__ == "__main__":
    main()
