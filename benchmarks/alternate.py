"""Shared code of the benchmarks: comparisons between alternating processes, and the JSON line at the end.

Each side of a comparison runs in a child process, so two libraries share neither threads nor memory. All children stay
alive. One works while the others wait, and rounds alternate, so a busy minute of the machine affects all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_READY = "ready"


class Seconds(NamedTuple):
    """Wall time and CPU time of one run.

    CPU time covers all threads, including spin waits, and child processes that have exited.
    """

    wall: float
    processor: float


class Side:
    """A child process that repeats the same work on request."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        """Starts `python -m ARGUMENTS`, which must call `serve`, and waits until it is ready.

        Args:
            arguments: Module and flags.
            environment: Variables to add to the environment of this process.
            folder: Working directory, searched first for modules. Defaults to the current directory.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=folder,
        )
        self._expect(_READY)

    def run(self) -> Seconds:
        """Does the work once. Raises RuntimeError if the child has exited."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return Seconds(*map(float, self._expect("seconds").split()))

    def close(self) -> None:
        """Stops the child."""
        self._process.stdin.close()
        self._process.wait()

    def _expect(self, word: str) -> str:
        for line in self._process.stdout:  # libraries may print other lines
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise RuntimeError(f"{' '.join(self._process.args[1:])} exited with status {self._process.wait()}")


def use_cores(count: int) -> None:
    """Restricts this process to `count` cores. Call it before a library starts its threads."""
    if count < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def serve(work: Callable[[], Any], warm_ups: int = 2, untimed_runs: int = 0) -> None:
    """Child side: runs `work` once per line on standard input and prints the time it took.

    Args:
        work: Function to time. It must block until the work is done.
        warm_ups: Number of runs before the first turn.
        untimed_runs: Number of untimed runs at the start of each turn, for work that in practice runs without pauses.
            While another side runs, caches go cold and freed memory is returned. On virtual machines it goes
            back to the host, so each page costs a fault there.
    """
    for _ in range(warm_ups):
        work()
    print(_READY, flush=True)
    for _ in sys.stdin:
        for _ in range(untimed_runs):
            work()
        wall, processor = time.perf_counter(), _processor_seconds()
        work()
        print("seconds", time.perf_counter() - wall, _processor_seconds() - processor, flush=True)


def _processor_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, Seconds]:
    """Returns the median times of each side over `rounds` rounds. Every side runs once per round."""
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(side.run())
    return {name: Seconds(*map(statistics.median, zip(*rows, strict=True))) for name, rows in times.items()}


def compare(seconds: Mapping[str, Seconds], images: int) -> dict[str, dict[str, float]]:
    """Returns the cells for `print_result`, one per peer: images per second and the ratio of CPU time."""
    ours = seconds["ours"]
    return {
        name: {
            "ours": images / ours.wall,
            "peer": images / peer.wall,
            "ratio": peer.wall / ours.wall,
            "processor_ratio": peer.processor / ours.processor,
        }
        for name, peer in seconds.items()
        if name != "ours"
    }


@contextlib.contextmanager
def start_sides(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> Iterator[dict[str, Side]]:
    """Starts one child process per name from its `(arguments, environment)`, and stops them all on exit."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, (arguments, environment) in commands.items():
            sides[name] = Side(arguments, environment)
            stack.callback(sides[name].close)
        yield sides


def print_result(name: str, cells: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """Prints the last line of a benchmark: the worst cell, then all cells.

    Args:
        name: Name of the benchmark.
        cells: Per comparison, `ours` and `peer` in `unit`, and their `ratio`. Above 1 means that ours is better.
        unit: Unit of `ours` and `peer`.
    """
    rounded = {label: {key: round(value, 3) for key, value in cell.items()} for label, cell in cells.items()}
    worst = min(rounded.values(), key=lambda cell: cell["ratio"])
    device = f"{_processor()} ({platform.machine()}, {os.cpu_count()} cores)"
    summary = {key: worst[key] for key in ("ratio", "ours", "peer")}
    print(json.dumps({"name": name, **summary, "unit": unit, "device": device, "cells": rounded}))


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
