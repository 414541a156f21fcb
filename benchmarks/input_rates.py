"""Rates of the input pipeline in absolute terms: from the pixel cache, under Python's lock, and with processes.

    python -m benchmarks.input_rates [--root=FOLDER] [--kinds=cache,lock,processes] [--count=400] [--rounds=5]

`benchmarks.input_pipeline` can run these cells, too. Each kind runs in a separate process on two cores, up to complete
training batches:

- cache: images per second from a pixel cache in memory, compared with 10,000.
- lock: microseconds per image during which Python's interpreter lock is held, compared with 100. Decoding and resizing,
  which release the lock, are replaced by functions that return a small image, files are cut after 64 kB, and what
  remains of the CPU time is counted. This includes the system calls that read the files, so it is an upper bound.
- processes: images per second from JPEGs with two processes that decode (`config.data.worker_type`), compared with two
  threads.

Each run follows an untimed one without a pause, so nothing is prefetched before it starts. The rates are measured in
wall time, so the machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.alternate import Seconds, alternate, print_result, print_times, serve, start_sides, use_cores
from benchmarks.conditions import Conditions
from benchmarks.peers.image_loaders import list_images

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_mini" / "images"
KINDS = {"cache": ("cache",), "lock": ("lock",), "processes": ("processes", "threads")}  # sides of each kind
CORES = 2
CACHED_IMAGES = 2000  # 300 MB
PASSES = 10  # over the images per run, if they are not decoded
MIN_CACHED_RATE, MAX_LOCKED_MICROSECONDS = 10_000, 100
_HEADER_BYTES = 65_536


class StubVocabulary:
    """A vocabulary that encodes every caption as empty, because encoding is not measured here."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        """Returns <s>, </s> and padding."""
        return np.array([0, 2] + [1] * (max_length - 2), np.int32)


def make_side(kind: str, paths: list[str], size: int, batch: int, folder: Path) -> Callable[[], None]:
    """Returns a function that loads the training batches of one run of a kind.

    Args:
        kind: a side in `KINDS`.
        paths: JPEG files.
        size: side of the squares, in pixels.
        batch: images per batch.
        folder: empty folder for temporary files.
    """
    from input_pipeline.images import Preprocessing

    if kind == "lock":
        paths, size = cut_files(paths, folder), replace_decoding()
    stored, count = None, len(paths) * (PASSES if kind == "lock" else 1)
    if kind == "cache":
        count = PASSES * CACHED_IMAGES
        paths = [f"{number}.jpg" for number in range(CACHED_IMAGES)]
    split = make_split(paths)
    if kind == "cache":
        stored = write_pixels(split, size, folder)
    batches = iterate(split, Preprocessing(size), batch, "processes" if kind == "processes" else "threads", stored)

    def load_batches() -> None:
        if not all(batch["mask"].all() for batch in itertools.islice(batches, count // batch)):
            raise AssertionError("an image could not be read")

    return load_batches


def make_split(paths: list[str]):
    """Returns a split with five captions per image."""
    from input_pipeline.records import Record, Split

    captions = tuple(f"caption {number}" for number in range(5))
    return Split("train", [Record(Path(path), captions, index) for index, path in enumerate(paths)])


def iterate(split, preprocessing, batch: int, worker_type: str, stored, workers: int = CORES):
    """Returns the infinite iterator over batches that training uses."""
    from caption_jax.config import default_config
    from input_pipeline.batches import train_batches
    from input_pipeline.data_spec import DataSpec
    from input_pipeline.prefetch import prefetch_to_device

    values = default_config().data.to_dict() | {"batch_size": batch, "workers": workers, "worker_type": worker_type}
    data = DataSpec.from_config(values)
    batches = train_batches(split, preprocessing, StubVocabulary(), data, 0, stored=stored)
    return prefetch_to_device(batches, None, data.prefetch)


def write_pixels(split, size: int, folder: Path):
    """Writes random pixels of all images of a split, which remain in the page cache, and returns them."""
    from input_pipeline.pixel_files import PixelFiles, StoredPixels

    files, rng = PixelFiles(folder, len(split), size), np.random.default_rng(0)
    files.create()
    for block in files.blocks:
        files.write(block, rng.integers(0, 256, (len(files.image_indices(block)), *files.shape), np.uint8), {})
    return StoredPixels(files, split)


def cut_files(paths: list[str], folder: Path) -> list[str]:
    """Copies the first bytes of each file, which contain its header."""
    copies = {path: folder / Path(path).name for path in paths}
    for path, copy in copies.items():
        copy.write_bytes(Path(path).read_bytes()[:_HEADER_BYTES])
    return [str(copies[path]) for path in paths]


def replace_decoding() -> int:
    """Replaces decoding and resizing by functions that return a small image, and returns its side."""
    from input_pipeline import images

    square = np.zeros((8, 8, 3), np.uint8)
    images._decode_reduced = lambda *arguments: square
    images.resize_to_square = lambda *arguments: square
    return len(square)


def measure_rates(options: argparse.Namespace, kinds: list[str], conditions: Conditions) -> dict[str, dict[str, float]]:
    """Returns the cells of the kinds, in the format of `print_result`."""
    sides = [side for kind in kinds for side in KINDS[kind]]
    flags = [f"--{name}={getattr(options, name)}" for name in ("root", "count", "size", "batch")]
    commands = {side: (["benchmarks.input_rates", f"--serve={side}", *flags], {}) for side in sides}
    with start_sides(commands) as processes:
        seconds = alternate(processes, options.rounds, conditions)
    print_times(seconds, 1, "runs/s")
    return make_cells(seconds, options.count, options.batch)


def make_cells(seconds: Mapping[str, Seconds], count: int, batch: int) -> dict[str, dict[str, float]]:
    """Converts the times of all sides to cells.

    Args:
        seconds: median times by side.
        count: number of JPEGs per run.
        batch: images per batch.
    """
    cells = {}
    if "cache" in seconds:
        rate = _count_loaded(PASSES * CACHED_IMAGES, batch) / seconds["cache"].wall
        ratio = rate / MIN_CACHED_RATE
        cells["pixel cache, images/s"] = {"ours": rate, "peer": MIN_CACHED_RATE, "ratio": ratio}
    if "lock" in seconds:
        locked = 1e6 * seconds["lock"].cpu / _count_loaded(PASSES * count, batch)
        ratio = MAX_LOCKED_MICROSECONDS / locked
        cells["interpreter lock, us per image"] = {"ours": locked, "peer": MAX_LOCKED_MICROSECONDS, "ratio": ratio}
    if "processes" in seconds:
        rates = {side: _count_loaded(count, batch) / seconds[side].wall for side in ("processes", "threads")}
        ratio = rates["processes"] / rates["threads"]
        cells["two processes, images/s"] = {"ours": rates["processes"], "peer": rates["threads"], "ratio": ratio}
    return cells


def _count_loaded(count: int, batch: int) -> int:
    """Returns the number of images in the complete batches of `count` images."""
    return count // batch * batch


def print_cells(cells: Mapping[str, Mapping[str, float]]) -> None:
    """Prints one line per cell."""
    for label, cell in cells.items():
        print(f"{label:31} {cell['ours']:8.0f}, compared with {cell['peer']:6.0f}: {cell['ratio']:.2f}", flush=True)


def main() -> None:
    """Runs the benchmark, or one side as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=[side for sides in KINDS.values() for side in sides], help="side to run")
    options = parser.parse_args()
    if options.serve:
        use_cores(CORES)
        with tempfile.TemporaryDirectory() as folder:
            paths = list_images(options.root, options.count)
            serve(make_side(options.serve, paths, options.size, options.batch, Path(folder)), untimed_runs=1)
        return
    conditions = Conditions(CORES)
    cells = measure_rates(options, options.kinds.split(","), conditions)
    print_cells(cells)
    print_result("input_rates", cells, "see cells", conditions)


if __name__ == "__main__":
    main()
