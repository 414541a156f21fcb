"""Runs the selected cells and merges their results into `results.json`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from pathlib import Path

from benchmarks.accelerator.cells import CELLS, MissingPackageError
from benchmarks.accelerator.page import make_page
from benchmarks.accelerator.workload import SCALES


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description="Speed, numerics and a profile on an accelerator")
    parser.add_argument("--out", type=Path, required=True, help="output folder; results are merged with earlier ones")
    parser.add_argument("--cells", default=",".join(CELLS), help=f"comma-separated, of {', '.join(CELLS)}")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs of each implementation")
    options = parser.parse_args()
    unknown = set(options.cells.split(",")) - CELLS.keys()
    if unknown:
        parser.error(f"unknown cell {', '.join(sorted(unknown))}; available: {', '.join(CELLS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"scale": options.scale, "cells": {}}
    results["python"] = platform.python_version()
    names = options.cells.split(",")
    for name in names:
        print(f"{name} ...", flush=True)
        try:
            results["cells"][name] = CELLS[name](options)
        except MissingPackageError as error:
            results["cells"][name] = {"skipped": str(error)}
        except Exception as error:  # the other cells must still run
            traceback.print_exc()
            results["cells"][name] = {"error": str(error)}
        print(f"{name}: {json.dumps(results['cells'][name])[:1500]}", flush=True)
        path.write_text(json.dumps(results, indent=1))
        (options.out / "page.md").write_text(make_page(results))
    print(json.dumps(summarise(results)))
    failed = [name for name in names if "error" in results["cells"][name]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see the messages above and {path}")


def summarise(results: dict) -> dict:
    """Returns a summary in the format of all benchmarks: the comparison with the lowest ratio, and all comparisons.

    `final` is true if the figures of all compared cells are (`benchmarks.conditions`), and None if that is unknown.
    """
    cells = {}
    for name, cell in results["cells"].items():
        for peer, comparison in cell.get("comparisons", {}).items():
            cells[f"{name}, {peer}"] = {key: round(value, 3) for key, value in comparison.items()}
    finals = {cell.get("final") for cell in results["cells"].values() if cell.get("comparisons")}
    final = False if False in finals else None if None in finals or not finals else True
    devices = [cell["device"] for cell in results["cells"].values() if "device" in cell]
    worst = min(cells.values(), key=lambda cell: cell["ratio"], default={"ratio": None, "ours": None, "peer": None})
    summary = {key: worst[key] for key in ("ratio", "ours", "peer")}
    device = devices[0] if devices else platform.machine()
    return {"name": "accelerator", **summary, "unit": "images/s", "device": device, "final": final, "cells": cells}


if __name__ == "__main__":
    main()
