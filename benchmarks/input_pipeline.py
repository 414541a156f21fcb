"""Images per second per core from JPEG files to uint8 batches, compared with tf.data and PyTorch's DataLoader.

    python -m benchmarks.input_pipeline [--root=FOLDER] [--modes=stretch] [--count=200] [--rounds=5]

Requires the bench extra. FOLDER contains photographs (.jpg), repeated up to `--count`; the default is the development
data next to the checkout. Each side runs in its own process, and they alternate. CPU time is measured, over all
threads and worker processes. It is more stable than wall time on a busy machine, and its inverse is the throughput
that each additional core adds. Peers produce the same output as ours, an antialiased square of 224 pixels, and a loop
over the decoder and the resize alone is compared too. A peer with workers counts with its best number of workers. The
last line is JSON; its `ratio` is that of the worst cell. The lines before it also list variants with different output:
tf.data without antialiasing, and the decoder without the resize.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.alternate import alternate, print_result, serve, start_sides
from benchmarks.peers.image_loaders import KINDS, RESIZE_MODES, TORCH, recycled

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_mini" / "images"


class EmptyCaptions:
    """Placeholder for a vocabulary. Captions are encoded once per run, which is not measured here."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        """Returns <s>, </s> and padding."""
        return np.array([0, 2] + [1] * (max_length - 2), np.int32)


def our_pipeline(paths: list[str], size: int, mode: str, batch: int) -> Callable[[], None]:
    """Returns a function that runs the pipeline once, from starting its threads to the last batch."""
    from caption_jax.config import default_config
    from input_pipeline.batches import eval_batches
    from input_pipeline.images import Preprocessing
    from input_pipeline.prefetch import prefetch_to_device
    from input_pipeline.records import Record, Split

    data = default_config().data
    data.eval_batch_size = batch
    split = Split("train", [Record(Path(path), ("",), number) for number, path in enumerate(paths)])

    def work() -> None:
        batches = eval_batches(split, Preprocessing(size, mode), EmptyCaptions(), data)
        count = sum(int(loaded["mask"].sum()) for loaded in prefetch_to_device(batches, None, data.prefetch))
        if count != len(paths):
            raise AssertionError(f"loaded {count} of {len(paths)} images")

    return work


def measure(mode: str, options: argparse.Namespace) -> dict[str, float]:
    """Images per second of CPU time, for ours and every kind of peer."""
    task = [f"--mode={mode}", *(f"--{name}={getattr(options, name)}" for name in ("root", "count", "size", "batch"))]
    peers = {kind: (["benchmarks.peers.image_loaders", f"--kind={kind}", *task], {}) for kind in KINDS}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    commands = {"ours": (["benchmarks.input_pipeline", "--serve", *task], {}), **peers}
    with start_sides({name: (arguments, quiet) for name, (arguments, _) in commands.items()}) as sides:
        seconds = alternate(sides, options.rounds)
    return {name: options.count / times.processor for name, times in seconds.items()}


def best_peers(rates: dict[str, float]) -> dict[str, float]:
    """Rates of the peers with the same output as ours, each with its best number of workers."""
    torch = {
        f"torch {decoder}": max(rates[kind] for kind, (name, _) in TORCH.items() if name == decoder)
        for decoder in ("tensor", "pillow")
    }
    return {"tf.data": rates["tf"], **torch, "bare loop": rates["bare"]}


def main() -> None:
    """Runs the benchmark, or our side of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--modes", default="stretch")
    parser.add_argument("--mode", choices=RESIZE_MODES, default="stretch", help="resize mode with --serve")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="run as our side of the comparison")
    options = parser.parse_args()
    paths = recycled(options.root, options.count)
    if options.serve:
        serve(our_pipeline(paths, options.size, options.mode, options.batch))
        return
    cells = {}
    for mode in options.modes.split(","):
        rates = measure(mode, options)
        for name, rate in rates.items():
            print(f"{mode:6} {name:15} {rate:6.0f} images/s per core, {1e3 / rate:.2f} ms", flush=True)
        for name, rate in best_peers(rates).items():
            cells[f"{mode}, {name}"] = {"ours": rates["ours"], "peer": rate, "ratio": rates["ours"] / rate}
    print_result("input_pipeline", cells, "images/s/core")


if __name__ == "__main__":
    main()
