"""Images a second and core from JPEG files to uint8 batches, against tf.data, torch's DataLoader and the bare decoder.

    python -m benchmarks.input_pipeline [--root=FOLDER] [--fits=squash] [--count=200] [--rounds=5]

Needs the bench extra. FOLDER holds photographs (.jpg), by default those beside a development checkout; they are
recycled up to `--count`. Each contestant has a process of its own, and they take turns. What counts is processor time,
of all threads and of workers that are processes: on a busy machine it is steadier than the clock on the wall, and its
inverse is what each further core would add. Peers make what we make, an antialiased square of 224; a peer with workers
counts with the number at which it is best. The last line is JSON; its `ratio` is the worst cell's. The lines before it
also show what makes other pixels, or none: tf.data without antialiasing, and the decoder without the resize.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.alternate import alternate, contest, print_result, serve
from benchmarks.peers.image_loaders import FITS, KINDS, TORCH, recycled

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_mini" / "images"


class Words:
    """Stands for a vocabulary: captions are encoded once a run, which is not what is measured here."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        """Returns <s> </s> and pads."""
        return np.array([0, 2] + [1] * (max_length - 2), np.int32)


def our_pipeline(paths: list[str], size: int, fit: str, batch: int) -> Callable[[], None]:
    """One pass through the pipeline, from its first thread to its last batch."""
    from caption_jax.config import default_config
    from input_pipeline.batches import eval_batches
    from input_pipeline.images import Preprocessing
    from input_pipeline.prefetch import prefetch_to_device
    from input_pipeline.records import Record, Split

    data = default_config().data
    data.eval_batch_size = batch
    split = Split("train", [Record(Path(path), ("",), number) for number, path in enumerate(paths)])

    def work() -> None:
        batches = prefetch_to_device(eval_batches(split, Preprocessing(size, fit), Words(), data), None, data.prefetch)
        read = sum(int(loaded["mask"].sum()) for loaded in batches)
        if read != len(paths):
            raise AssertionError(f"{read} of {len(paths)} images were read")

    return work


def measure(fit: str, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of processor time, of ours and of every kind of peer."""
    task = [f"--fit={fit}", *(f"--{name}={getattr(options, name)}" for name in ("root", "count", "size", "batch"))]
    peers = {kind: (["benchmarks.peers.image_loaders", f"--kind={kind}", *task], {}) for kind in KINDS}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    commands = {"ours": (["benchmarks.input_pipeline", "--serve", *task], {}), **peers}
    with contest({name: (arguments, quiet) for name, (arguments, _) in commands.items()}) as sides:
        seconds = alternate(sides, options.rounds)
    return {name: options.count / taken.processor for name, taken in seconds.items()}


def best_peers(rates: dict[str, float]) -> dict[str, float]:
    """The rates of the peers that make what we make, each with the workers at which it is best."""
    torch = {
        f"torch {decoder}": max(rates[kind] for kind, (this, _) in TORCH.items() if this == decoder)
        for decoder in ("tensor", "pillow")
    }
    return {"tf.data": rates["tf"], **torch, "bare loop": rates["bare"]}


def main() -> None:
    """Runs the benchmark, or serves our side of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--fits", default="squash")
    parser.add_argument("--fit", choices=FITS, default="squash", help="of what is served")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="be our contestant")
    options = parser.parse_args()
    paths = recycled(options.root, options.count)
    if options.serve:
        serve(our_pipeline(paths, options.size, options.fit, options.batch))
        return
    cells = {}
    for fit in options.fits.split(","):
        rates = measure(fit, options)
        for name, rate in rates.items():
            print(f"{fit:6} {name:15} {rate:6.0f} images/s a core, {1e3 / rate:.2f} ms", flush=True)
        for name, rate in best_peers(rates).items():
            cells[f"{fit}, {name}"] = {"ours": rates["ours"], "peer": rate, "ratio": rates["ours"] / rate}
    print_result("input_pipeline", cells, "images/s/core")


if __name__ == "__main__":
    main()
