"""Time from the start of a command to its first result, with a warm and with a cold compilation cache.

    python -m benchmarks.startup [--commands=caption,train,first_caption] [--rounds=5] [--encoder=lite0] [--limit=2]

`caption` runs `main.py --mode=caption` on one image to completion. `train` runs `main.py` in a new workdir until
metrics.jsonl contains the first step, which has a batch of 4 images, so most of the time is spent on startup. The model
is that of configs/flickr8k.py with random weights, and the images are random noise. First, both commands are run once
to fill the cache. Then processes with this cache (warm) alternate with processes with an empty cache (cold). Both wall
time and CPU time are reported. The last line is JSON. `ratio` is the ratio of cold to warm wall time, for the command
with the lower ratio.
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
from benchmarks.conditions import Conditions

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("dog", "cat", "man", "woman", "child", "red", "blue", "green", "runs", "sits", "jumps", "over", "under", "on")
FIRST_CAPTION = """
import sys, caption_jax
print(caption_jax.load(sys.argv[1]).caption(sys.argv[2]), flush=True)
"""
TIMEOUT = 600  # seconds after which a process is considered hung


class Launcher:
    """Runs and times main.py, in a folder that also contains the dataset and a trained workdir."""

    def __init__(self, folder: Path, encoder: str):
        self._folder, self._encoder = folder, encoder
        self.warm_cache_dir = folder / "compiled"
        self.image = write_dataset(folder / "data")
        self.time_training(self.warm_cache_dir, folder / "trained", wait_for_exit=True)
        self.time_captioning(self.warm_cache_dir)

    def time_captioning(self, cache_dir: Path) -> tuple[float, float]:
        """Captions one image and returns the wall time and CPU time in seconds."""
        return self._run(["--mode=caption", f"--workdir={self._folder / 'trained'}", str(self.image)], cache_dir)

    def time_first_caption(self) -> tuple[float, float]:
        """Captions one image with the Python API, and returns the wall time and CPU time to the caption in seconds."""
        environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-c", FIRST_CAPTION, str(self._folder / "trained"), str(self.image)]
        with tempfile.TemporaryFile() as errors:
            start = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
            with process.stdout:
                line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.kill()  # the shutdown of the interpreter does not delay the caption
            _, _, usage = os.wait4(process.pid, 0)
            if not line.startswith(b"Caption("):
                errors.seek(0)
                raise RuntimeError(f"no caption was printed:\n{errors.read().decode(errors='replace')}")
        return seconds, usage.ru_utime + usage.ru_stime

    def time_training(
        self, cache_dir: Path, workdir: Path | None = None, wait_for_exit: bool = False
    ) -> tuple[float, float]:
        """Starts training and returns the wall time and CPU time until the first step, in seconds.

        Args:
            cache_dir: Folder of the compilation cache.
            workdir: Workdir of the run. A new folder if None.
            wait_for_exit: Whether to wait for the run to finish instead of stopping it at the first step.
        """
        workdir = workdir or Path(tempfile.mkdtemp(dir=self._folder))
        settings = {
            "data.root": self._folder / "data",
            "data.split_files.train": "",
            "data.split_files.val": "",
            "data.batch_size": 4,
            "data.eval_batch_size": 4,  # also used for computing features
            "model.encoder.variant": self._encoder,
            "model.encoder.weights": "",
            "train.steps": 1,
            "train.log_every": 1,
        }
        arguments = [f"--config={ROOT / 'configs' / 'flickr8k.py'}", f"--workdir={workdir}"]
        arguments += [f"--config.{key}={value}" for key, value in settings.items()]
        return self._run(arguments, cache_dir, None if wait_for_exit else workdir / "metrics.jsonl")

    def _run(self, arguments: list[str], cache_dir: Path, result_file: Path | None = None) -> tuple[float, float]:
        """Runs main.py to completion, or until `result_file` is not empty. Returns (wall, CPU) seconds."""
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache_dir)}
        command = [sys.executable, str(ROOT / "main.py"), *arguments]
        with tempfile.TemporaryFile() as output:
            start = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            while result_file is not None and not (result_file.exists() and result_file.stat().st_size):
                if process.poll() is not None or time.perf_counter() - start > TIMEOUT:
                    break
                time.sleep(0.01)
            else:
                if result_file is not None:
                    process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            if status and not (result_file is not None and result_file.exists()):
                output.seek(0)
                raise RuntimeError(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
        return seconds, usage.ru_utime + usage.ru_stime


def write_dataset(folder: Path, count: int = 8) -> Path:
    """Writes noise images of 224 x 224 pixels and five captions per image. Returns the path of the first image."""
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
    command: str, run: Callable[[Path], tuple[float, float]], warm_cache_dir: Path, rounds: int
) -> dict[str, float]:
    """Runs cold and warm processes alternately.

    Args:
        command: Name of the command, to print.
        run: Runs the command with the given compilation cache folder and returns its wall and CPU time.
        warm_cache_dir: Compilation cache folder of warm processes.
        rounds: Number of cold processes and of warm processes.

    Returns:
        The median wall and CPU time in seconds, and their cold/warm ratios. For the JSON format that all benchmarks
        share, warm processes are called `ours` and cold ones `peer`.
    """
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        cold_cache_dir = Path(tempfile.mkdtemp())
        try:
            times["peer"].append(run(cold_cache_dir))
        finally:
            shutil.rmtree(cold_cache_dir)
        times["ours"].append(run(warm_cache_dir))
    comparison = {}
    for side, cache in (("ours", "warm"), ("peer", "cold")):
        wall, cpu = (statistics.median(column) for column in zip(*times[side], strict=True))
        comparison |= {side: wall, f"{side}_cpu_seconds": cpu}
        print(f"{command:7} {cache}: {wall:6.2f} s, CPU {cpu:6.2f} s", flush=True)
    return {
        **comparison,
        "ratio": comparison["peer"] / comparison["ours"],
        "cpu_ratio": comparison["peer_cpu_seconds"] / comparison["ours_cpu_seconds"],
    }


def measure_first_caption(run: Callable[[], tuple[float, float]], rounds: int, limit: float) -> dict[str, float]:
    """Runs one process that fills the cache in the workdir, and then `rounds` processes that use it.

    Returns:
        The median wall and CPU time in seconds as `ours`, and the limit as `peer`.
    """
    run()
    wall, cpu = (statistics.median(column) for column in zip(*(run() for _ in range(rounds)), strict=True))
    print(f"first caption of a second process: {wall:6.2f} s, CPU {cpu:6.2f} s; limit {limit:g} s", flush=True)
    return {"ours": wall, "ours_cpu_seconds": cpu, "peer": limit, "ratio": limit / wall, "cpu_ratio": limit / cpu}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default="caption,train,first_caption")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="lite0")
    parser.add_argument("--limit", type=float, default=2.0, help="limit of first_caption, in seconds")
    parser.add_argument(
        "--serve",
        default="",
        choices=["", "caption", "train"],
        help="run as a child process that starts this command with a warm cache",
    )
    options = parser.parse_args()
    conditions, comparisons = None if options.serve else Conditions(), {}
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(Path(folder), options.encoder)
        cache_dir = launcher.warm_cache_dir
        functions = {"caption": launcher.time_captioning, "train": launcher.time_training}
        if conditions is None:
            serve(lambda: functions[options.serve](cache_dir))
            return
        for command in options.commands.split(","):
            with conditions.measured():
                if command == "first_caption":
                    comparisons["second process, first caption"] = measure_first_caption(
                        launcher.time_first_caption, options.rounds, options.limit
                    )
                else:
                    comparisons[command] = measure(command, functions[command], cache_dir, options.rounds)
    print_result("startup", comparisons, "seconds", conditions)


if __name__ == "__main__":
    main()
