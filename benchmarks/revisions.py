"""Speed of this revision compared with a checkout of another one, to check that a refactoring costs nothing.

    git worktree add ../base REVISION
    python -m benchmarks.revisions --base=../base [--parts=train_step,encoder] [--starts=3] [--rounds=5]

Each part is our side of the benchmark of that name, started from both trees; the two processes alternate. A
process can be slow for its whole lifetime, depending on where its memory is allocated, so each pair is started
`--starts` times and the median of all turns counts. There are no peers, so the bench extra is not required. The ratio
of a cell is the seconds of the base over ours: 0.95 means that this revision takes 5 % longer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.alternate import Seconds, Side, print_result
from caption_jax.runtime.process import HUGE_PAGES

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "train_step": {"batch 16": ["benchmarks.train_step", "--serve"]},
    "encoder": {f"batch {batch}": ["benchmarks.encoder", f"--serve={batch}"] for batch in (1, 16)},
    "frozen_training": {name: ["benchmarks.frozen_training", f"--serve={name}"] for name in ("ours", "flickr8k")},
    "decode": {
        f"{size}, batch {batch}": ["benchmarks.decode", f"--serve={size}", f"--batches={batch}"]
        for size in ("flickr8k", "coco")
        for batch in (1, 16)
    },
    "startup": {part: ["benchmarks.startup", f"--serve={part}"] for part in ("caption", "train")},
}


def alternate_trees(arguments: list[str], base: Path, starts: int, rounds: int) -> dict[str, Seconds]:
    """Median seconds of the same work in both trees.

    Each tree has a separate compilation cache (`JAX_COMPILATION_CACHE_DIR`).
    """
    times: dict[str, list[Seconds]] = {"ours": [], "base": []}
    with tempfile.TemporaryDirectory() as compiled:
        for _ in range(starts):
            with contextlib.ExitStack() as stack:
                sides = {}
                for name, tree in {"ours": ROOT, "base": base}.items():
                    environment = {**HUGE_PAGES, "JAX_COMPILATION_CACHE_DIR": f"{compiled}/{name}"}
                    sides[name] = Side(arguments, environment, tree)
                    stack.callback(sides[name].close)
                for _ in range(rounds):
                    for name, side in sides.items():
                        times[name].append(side.run())
    return {name: Seconds(*map(statistics.median, zip(*rows, strict=True))) for name, rows in times.items()}


def cell(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """Returns a cell for `print_result`, in milliseconds."""
    ours, base = seconds["ours"], seconds["base"]
    return {
        "ours": 1e3 * ours.wall,
        "peer": 1e3 * base.wall,
        "ratio": base.wall / ours.wall,
        "processor_ratio": base.processor / ours.processor,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="checkout of the revision to compare with")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cells = {}
    for part in options.parts.split(","):
        for name, arguments in PARTS[part].items():
            result = cell(alternate_trees(arguments, options.base.resolve(), options.starts, options.rounds))
            cells[f"{part}, {name}"] = result
            print(
                f"{part + ', ' + name:32} ours {result['ours']:8.1f} ms, base {result['peer']:8.1f} ms; "
                f"ratio {result['ratio']:.3f}, CPU time {result['processor_ratio']:.3f}",
                flush=True,
            )
    print_result("revisions", cells, "ms")


if __name__ == "__main__":
    main()
