"""Time from starting a command to its first result, with a warm compilation cache compared with a cold one.

    python -m benchmarks.startup [--parts=caption,train] [--rounds=5] [--encoder=lite0]

A model of the size of configs/flickr8k.py with random weights is trained for one step on random noise and captions one
image. Then warm and cold processes alternate, the cold ones with an empty compilation cache. `caption` runs
`main.py --mode=caption` on one image to completion. `train` runs `main.py` in a new workdir until metrics.jsonl has its
first step (4 of 8 images, so startup dominates). Wall time is compared, and CPU time is reported as well. The last line
is JSON; its `ratio` is cold / warm wall time of whichever part has the lower one.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.alternate import print_result, serve

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("dog", "cat", "man", "woman", "child", "red", "blue", "green", "runs", "sits", "jumps", "over", "under", "on")
TIMEOUT = 600  # seconds, after which a process is considered hung


class Launcher:
    """Starts main.py in a folder that also contains the data and a trained workdir."""

    def __init__(self, folder: Path, encoder: str):
        self._folder, self._encoder = folder, encoder
        self.warm_cache_dir = folder / "compiled"
        self.image = write_images(folder / "data")
        self.train(self.warm_cache_dir, folder / "trained", wait_for_exit=True)
        self.caption(self.warm_cache_dir)

    def caption(self, cache_dir: Path) -> tuple[float, float]:
        """Returns the (wall, CPU) seconds of captioning one image."""
        return self._run(["--mode=caption", f"--workdir={self._folder / 'trained'}", str(self.image)], cache_dir)

    def train(self, cache_dir: Path, workdir: Path | None = None, wait_for_exit: bool = False) -> tuple[float, float]:
        """Returns the (wall, CPU) seconds to the first training step, in a new workdir by default."""
        workdir = workdir or Path(tempfile.mkdtemp(dir=self._folder))
        settings = {
            "data.root": self._folder / "data",
            "data.split_files.train": "",
            "data.split_files.val": "",
            "data.batch_size": 4,
            "data.eval_batch_size": 4,  # also the batch size for computing features
            "model.encoder.variant": self._encoder,
            "model.encoder.weights": "",
            "train.steps": 1,
            "train.log_every": 1,
        }
        arguments = [f"--config={ROOT / 'configs' / 'flickr8k.py'}", f"--workdir={workdir}"]
        arguments += [f"--config.{key}={value}" for key, value in settings.items()]
        return self._run(arguments, cache_dir, None if wait_for_exit else workdir / "metrics.jsonl")

    def _run(self, arguments: list[str], cache_dir: Path, result: Path | None = None) -> tuple[float, float]:
        """Runs main.py to completion, or until a file is no longer empty."""
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache_dir)}
        command = [sys.executable, str(ROOT / "main.py"), *arguments]
        with tempfile.TemporaryFile() as output:
            start = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            while result is not None and not (result.exists() and result.stat().st_size):
                if process.poll() is not None or time.perf_counter() - start > TIMEOUT:
                    break
                time.sleep(0.01)
            else:
                if result is not None:
                    process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            if status and not (result is not None and result.exists()):
                output.seek(0)
                raise RuntimeError(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
        return seconds, usage.ru_utime + usage.ru_stime


def write_images(folder: Path, count: int = 8) -> Path:
    """Writes noise images of 224 x 224 pixels with five captions per image, and returns the path of the first."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(count):
            name = f"{number:02d}.jpg"
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(folder / "images" / name)
            writer.writerows([name, " ".join(rng.choice(WORDS, 10))] for _ in range(5))
    return folder / "images" / "00.jpg"


def measure(
    part: str, start: Callable[[Path], tuple[float, float]], launcher: Launcher, rounds: int
) -> dict[str, float]:
    """Median seconds of alternating warm (`ours`) and cold (`peer`) starts."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        cold = Path(tempfile.mkdtemp())
        try:
            times["peer"].append(start(cold))
        finally:
            shutil.rmtree(cold)
        times["ours"].append(start(launcher.warm_cache_dir))
    cell = {}
    for side, name in (("ours", "warm"), ("peer", "cold")):
        wall, cpu = (statistics.median(column) for column in zip(*times[side], strict=True))
        cell |= {side: wall, f"{side}_processor": cpu}
        print(f"{part:7} {name}: {wall:6.2f} s, CPU {cpu:6.2f} s", flush=True)
    return {
        **cell,
        "ratio": cell["peer"] / cell["ours"],
        "ratio_processor": cell["peer_processor"] / cell["ours_processor"],
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="caption,train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument(
        "--serve",
        default="",
        choices=["", "caption", "train"],
        help="run as one side of a comparison, with a warm cache",
    )
    options = parser.parse_args()
    if options.serve:
        with tempfile.TemporaryDirectory() as folder:
            launcher = Launcher(Path(folder), options.encoder)
            serve(lambda: getattr(launcher, options.serve)(launcher.warm_cache_dir))
        return
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(Path(folder), options.encoder)
        functions = {"caption": launcher.caption, "train": launcher.train}
        cells = {part: measure(part, functions[part], launcher, options.rounds) for part in options.parts.split(",")}
    print_result("startup", cells, "seconds")


if __name__ == "__main__":
    main()
