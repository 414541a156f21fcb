"""Images per second per core of training on prepared images, compared with JPEG files, tf.data and webdataset.

    python -m benchmarks.prepared_input [--root=FOLDER] [--count=1000] [--rounds=5]

`benchmarks.input_pipeline --cells=prepared` runs these cells, too. The photographs of FOLDER, repeated up to `--count`,
are prepared as raw pixels (`caption-jax prepare`). Each side then loads shuffled batches of training on one core:

- prepared: from these shards
- jpeg: from the photographs, which are decoded and resized
- tf, tf-batched, webdataset: the same pixels, in the format of each library (`benchmarks.peers.prepared_loaders`)

Rates are those of CPU time, summed over all threads. tf.data is represented by the faster of its two variants. The
peers return captions as text, ours as token ids. All files stay in the page cache, so disks are not measured. The peers
require the bench extra.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.alternate import Seconds, alternate, print_result, print_times, serve, start_sides, use_cores
from benchmarks.conditions import Conditions
from benchmarks.input_rates import PHOTOGRAPHS, iterate, make_split
from benchmarks.peers.image_loaders import list_images
from benchmarks.peers.prepared_loaders import CORES, KINDS, open_records

SIDES = ("prepared", "jpeg")


def write_prepared(paths: list[str], size: int, folder: Path) -> None:
    """Prepares photographs as raw pixels."""
    from input_pipeline.data_spec import DataSpec
    from input_pipeline.prepared.preparation import Request, prepare

    prepare(Request(folder, DataSpec(image_size=size, workers=0)), {"train": make_split(paths)})


def make_side(kind: str, paths: list[str], size: int, batch: int, prepared: Path) -> Callable[[], None]:
    """Returns a function that loads the complete training batches of all images.

    Args:
        kind: one of `SIDES`.
        paths: JPEG files.
        size: side of the squares, in pixels.
        batch: images per batch.
        prepared: folder of the prepared images.
    """
    from input_pipeline.images import Preprocessing

    split = open_records(prepared, size) if kind == "prepared" else make_split(paths)
    batches = iterate(split, Preprocessing(size), batch, "threads", None, workers=CORES)

    def load_batches() -> None:
        if not all(loaded["mask"].all() for loaded in itertools.islice(batches, len(paths) // batch)):
            raise AssertionError("an image could not be read")

    return load_batches


def measure_prepared(options: argparse.Namespace, conditions: Conditions) -> dict[str, dict[str, float]]:
    """Prepares the photographs, runs all sides, and returns the cells in the format of `print_result`."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("count", "size", "batch")]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        write_prepared(list_images(options.root, options.count), options.size, prepared)
        ours = ["benchmarks.prepared_input", f"--root={options.root}", f"--prepared={prepared}", *flags]
        commands = {side: ([*ours, f"--serve={side}"], {}) for side in SIDES}
        peer = ["benchmarks.peers.prepared_loaders", f"--root={prepared}", *flags]
        commands |= {kind: ([*peer, f"--kind={kind}"], {"TF_CPP_MIN_LOG_LEVEL": "2"}) for kind in KINDS}
        with start_sides(commands) as sides:
            seconds = alternate(sides, options.rounds, conditions)
    images = options.count // options.batch * options.batch
    print_times(seconds, images, "images/s")
    return make_cells(seconds, images)


def make_cells(seconds: Mapping[str, Seconds], images: int) -> dict[str, dict[str, float]]:
    """Compares prepared images with each peer, in images per second of CPU time.

    Args:
        seconds: median times by side.
        images: number of images per run.
    """
    rates = {side: images / times.cpu for side, times in seconds.items()}
    peers = {
        "JPEG files": rates["jpeg"],
        "tf.data": max(rates["tf"], rates["tf-batched"]),
        "webdataset": rates["webdataset"],
    }
    ours = rates["prepared"]
    return {f"prepared, {name}": {"ours": ours, "peer": rate, "ratio": ours / rate} for name, rate in peers.items()}


def main() -> None:
    """Runs the benchmark, or one of our sides as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=SIDES, help="side to run")
    parser.add_argument("--prepared", type=Path, help="folder of the prepared images if --serve is set")
    options = parser.parse_args()
    if options.serve:
        use_cores(CORES)
        paths = list_images(options.root, options.count)
        side = make_side(options.serve, paths, options.size, options.batch, options.prepared)
        serve(side, warm_ups=1, untimed_runs=1)
        return
    conditions = Conditions(CORES)
    print_result("prepared_input", measure_prepared(options, conditions), "images/s/core", conditions)


if __name__ == "__main__":
    main()
