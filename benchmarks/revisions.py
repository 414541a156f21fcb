"""Speed of this revision compared with a checkout of another revision, to check that a change does not affect speed.

    git worktree add ../base REVISION
    python -m benchmarks.revisions --base=../base [--benchmarks=train_step,encoder] [--starts=3] [--rounds=5]

Only our implementation is run in each benchmark. One process runs the code of this checkout, another the code of the
other checkout (the base), and the two processes alternate. A process can be slow for its whole lifetime,
depending on where its memory is allocated, so each pair of processes is started `--starts` times, and results are
medians over all rounds. No peers are involved, so the bench extra is not required. Ratios are the time of the base
divided by that of this revision; 0.95 means that this revision takes 5% longer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.alternate import Seconds, Side, print_result, take_median
from benchmarks.conditions import Conditions
from caption_jax.runtime.process import MALLOC_SETTINGS

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = {
    "train_step": {"batch 16": ["benchmarks.train_step", "--serve"]},
    "encoder": {f"batch {batch}": ["benchmarks.encoder", f"--serve={batch}"] for batch in (1, 16)},
    "frozen_training": {name: ["benchmarks.frozen_training", f"--serve={name}"] for name in ("ours", "flickr8k")},
    "decode": {
        f"{size}, batch {batch}": ["benchmarks.decode", f"--serve={size}", f"--batches={batch}"]
        for size in ("flickr8k", "coco")
        for batch in (1, 16)
    },
    "startup": {command: ["benchmarks.startup", f"--serve={command}"] for command in ("caption", "train")},
}


def time_checkouts(
    arguments: list[str], base: Path, starts: int, rounds: int, conditions: Conditions
) -> dict[str, Seconds]:
    """Returns the median times of a benchmark in both checkouts, which have separate compilation caches.

    Args:
        arguments: Module of the benchmark and its flags.
        base: Folder of the other checkout.
        starts: Number of times that each pair of processes is started.
        rounds: Number of timed runs per process.
        conditions: Where the load from other processes is recorded.
    """
    times: dict[str, list[Seconds]] = {"ours": [], "base": []}
    with tempfile.TemporaryDirectory() as cache_folder:
        for _ in range(starts):
            with contextlib.ExitStack() as stack:
                sides = {}
                for name, checkout in {"ours": ROOT, "base": base}.items():
                    environment = {**MALLOC_SETTINGS, "JAX_COMPILATION_CACHE_DIR": f"{cache_folder}/{name}"}
                    sides[name] = Side(arguments, environment, checkout)
                    stack.callback(sides[name].close)
                with conditions.measured():
                    for _ in range(rounds):
                        for name, side in sides.items():
                            times[name].append(side.run())
    return {name: take_median(runs) for name, runs in times.items()}


def compare(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Returns the times in milliseconds and their ratios; see `print_result`."""
    ours, base = seconds["ours"], seconds["base"]
    return {
        "ours": 1e3 * ours.wall,
        "peer": 1e3 * base.wall,
        "ratio": base.wall / ours.wall,
        "cpu_ratio": base.cpu / ours.cpu,
        "ours_cpu": 1e3 * ours.cpu,
        "peer_cpu": 1e3 * base.cpu,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="checkout of the revision to compare with")
    parser.add_argument("--benchmarks", default=",".join(BENCHMARKS))
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    conditions, comparisons = Conditions(), {}
    for benchmark in options.benchmarks.split(","):
        for name, arguments in BENCHMARKS[benchmark].items():
            base = options.base.resolve()
            result = compare(time_checkouts(arguments, base, options.starts, options.rounds, conditions))
            comparisons[f"{benchmark}, {name}"] = result
            print(
                f"{benchmark + ', ' + name:32} ours {result['ours']:8.1f} ms, base {result['peer']:8.1f} ms, "
                f"ratio {result['ratio']:.3f}; CPU time ours {result['ours_cpu']:8.1f} ms, "
                f"base {result['peer_cpu']:8.1f} ms, ratio {result['cpu_ratio']:.3f}",
                flush=True,
            )
    print_result("revisions", comparisons, "ms", conditions)


if __name__ == "__main__":
    main()
