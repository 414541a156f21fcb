"""Growth of memory, threads and open files during training on stored features, with regular evaluations (Linux).

    python -m benchmarks.soak --data=FOLDER [--minutes=45] [--eval_every=300] [--workdir=FOLDER] [--flag=FLAG ...]

FOLDER contains the data of configs/flickr8k.py. A run of `main.py` with this config is started in a separate process;
it computes and stores the features of the frozen encoder, and trains until the time is over. Measurement begins after
the first evaluation, when most programs are compiled, and ends with SIGTERM. Ten times per second, the memory of the
process, its threads and its open file descriptors are read from /proc. Temporary arrays of a step or an evaluation take
hundreds of MB, so growth is measured between the lowest samples of the intervals between evaluations, which are those
after freed memory was returned. It is their Theil-Sen slope: the median of the slopes between all pairs.

Anonymous memory is what the process allocated. The rest of the resident memory are pages of files, mostly the stored
features, which the kernel reclaims when memory is needed; they grow until every feature has been read once.

The last line is JSON. `ours` is the growth of anonymous memory in MB per ten minutes, `peer` the limit, and `ratio` the
limit divided by the growth (at most 100). Threads and descriptors have cells of their own: their limit is one per ten
minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.alternate import print_result
from benchmarks.conditions import Conditions

INTERVAL_SECONDS = 0.1
SAMPLES_PER_COUNT = 10  # samples between two counts of the evaluations
MIN_SAMPLES = 100  # in an interval between evaluations; the last one may be shorter
UNIT_SECONDS = 600  # growth is per ten minutes
LIMITS = {  # name -> field of a sample, limit per ten minutes
    "anonymous MB": ("anonymous_mb", 1.0),
    "threads": ("threads", 1.0),
    "descriptors": ("descriptors", 1.0),
}
MAX_RATIO = 100.0
MAX_START_MINUTES = 60


class Sample(NamedTuple):
    """Resources of a process at one moment.

    Attributes:
        seconds: Time of the sample.
        resident_mb: Resident memory in MB.
        anonymous_mb: Resident memory that is not part of a file, in MB.
        threads: Number of threads.
        descriptors: Number of open file descriptors.
        evaluations: Number of evaluations until then.
    """

    seconds: float
    resident_mb: float
    anonymous_mb: float
    threads: int
    descriptors: int
    evaluations: int = 0


def read_sample(pid: int) -> Sample:
    """Reads the resources of a process.

    Raises:
        FileNotFoundError: The process has ended.
    """
    folder = Path(f"/proc/{pid}")
    pairs = (line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    status = {key: int(value.split()[0]) for key, value in pairs if key in ("VmRSS", "RssAnon", "Threads")}
    descriptors = len(os.listdir(folder / "fd"))
    return Sample(time.monotonic(), status["VmRSS"] / 1024, status["RssAnon"] / 1024, status["Threads"], descriptors)


def compute_growth(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Returns the Theil-Sen slope per ten minutes.

    Raises:
        ValueError: There are fewer than two samples.
    """
    times, samples = np.asarray(seconds, float), np.asarray(values, float)
    if len(times) < 2:
        raise ValueError("growth requires at least two samples")
    first, second = np.triu_indices(len(times), k=1)
    return float(np.median((samples[second] - samples[first]) / (times[second] - times[first]))) * UNIT_SECONDS


def count_evaluations(workdir: Path) -> int:
    """Returns the number of evaluations of the validation split that a run has logged."""
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sum(row["split"] == "val" for row in rows)


@contextlib.contextmanager
def start_training(data: Path, workdir: Path, eval_every: int, flags: Sequence[str]) -> Iterator[subprocess.Popen]:
    """Starts a run without an end, whose output goes to `workdir/soak.log`, and ends it with SIGTERM."""
    command = [
        *(sys.executable, "main.py", "--config=configs/flickr8k.py", f"--workdir={workdir}"),
        *(f"--config.data.root={data}", "--config.train.steps=1000000000", f"--config.train.eval_every={eval_every}"),
        *(f"--config.train.checkpoint_every={eval_every}", *flags),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "soak.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=600)
        finally:
            process.kill()
            process.wait()


def wait_for_evaluation(process: subprocess.Popen, workdir: Path) -> None:
    """Blocks until the first evaluation is complete.

    Raises:
        RuntimeError: The run has ended, or takes more than an hour.
    """
    deadline = time.monotonic() + 60 * MAX_START_MINUTES
    while not count_evaluations(workdir):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run did not reach its first evaluation: see {workdir / 'soak.log'}")
        time.sleep(1)


def collect_samples(process: subprocess.Popen, workdir: Path, minutes: float) -> list[Sample]:
    """Samples a process at regular intervals, and prints a line per five minutes.

    Raises:
        RuntimeError: The process has ended.
    """
    samples: list[Sample] = []
    start = next_line = time.monotonic()
    while (now := time.monotonic()) < start + 60 * minutes:
        if process.poll() is not None:
            raise RuntimeError(f"the run has ended: see {workdir / 'soak.log'}")
        evaluations = samples[-1].evaluations if len(samples) % SAMPLES_PER_COUNT else count_evaluations(workdir)
        samples.append(read_sample(process.pid)._replace(evaluations=evaluations))
        if now >= next_line:
            next_line += 300
            print(describe(samples[-1], start), flush=True)
        time.sleep(INTERVAL_SECONDS)
    print(describe(samples[-1], start), flush=True)
    return samples


def describe(sample: Sample, start: float) -> str:
    """Returns one line about a sample."""
    return (
        f"{(sample.seconds - start) / 60:5.1f} min: resident {sample.resident_mb:.1f} MB, anonymous "
        f"{sample.anonymous_mb:.1f} MB, {sample.threads} threads, {sample.descriptors} descriptors, "
        f"{sample.evaluations} evaluations"
    )


def find_lows(samples: Sequence[Sample], name: str) -> list[tuple[float, float]]:
    """Returns time and value of the lowest sample of each interval between evaluations."""
    groups = [list(group) for _, group in itertools.groupby(samples, key=lambda sample: sample.evaluations)]
    lows = [min(group, key=lambda sample: getattr(sample, name)) for group in groups if len(group) >= MIN_SAMPLES]
    return [(low.seconds, getattr(low, name)) for low in lows]


def compare_growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Returns the growth of each resource per ten minutes, compared with its limit."""
    cells = {}
    for name, (field, limit) in LIMITS.items():
        seconds, values = zip(*find_lows(samples, field), strict=True)
        growth = compute_growth(seconds, values)
        ratio = min(limit / growth, MAX_RATIO) if growth > 0 else MAX_RATIO
        cells[name] = {"ours": growth, "peer": limit, "ratio": ratio, "first": values[0], "last": values[-1]}
        print(f"{name}: {', '.join(f'{value:.0f}' for value in values)}; {growth:+.3f} per 10 minutes", flush=True)
    return cells


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data of configs/flickr8k.py")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--eval_every", type=int, default=300, help="steps between evaluations and checkpoints")
    parser.add_argument("--workdir", type=Path, help="workdir to keep; a temporary folder by default")
    parser.add_argument("--flag", action="append", default=[], help="additional flag of main.py; may be repeated")
    options = parser.parse_args()
    conditions = Conditions()
    with contextlib.ExitStack() as stack:
        workdir = options.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        process = stack.enter_context(start_training(options.data, workdir, options.eval_every, options.flag))
        wait_for_evaluation(process, workdir)
        before = count_evaluations(workdir)
        with conditions.measured():
            samples = collect_samples(process, workdir, options.minutes)
        evaluations = count_evaluations(workdir) - before
        print(f"{len(samples):,} samples over {options.minutes:g} minutes with {evaluations} evaluations", flush=True)
        print_result("soak", compare_growth(samples), "per 10 minutes", conditions)


if __name__ == "__main__":
    main()
