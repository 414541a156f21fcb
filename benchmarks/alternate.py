"""Shared code of the benchmarks: timing of alternating processes, and the JSON line with the results.

A benchmark compares two or more implementations, called sides. Each side runs in a child process, so the libraries
share neither threads nor memory. In each round, every child runs once, so load from other programs affects all
sides alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.conditions import Conditions, list_usable_cores

# Arguments of a child process after `python -m`, and its environment variables in addition to those of this process.
Command = tuple[Sequence[str], Mapping[str, str]]
_READY = "ready"  # printed by a child process that is ready to run, with its number of threads


class Seconds(NamedTuple):
    """Wall time and CPU time of a run.

    CPU time is summed over all threads, including spin waits, and over child processes that have exited.
    """

    wall: float
    cpu: float


class Side:
    """A child process that runs and times a function on request.

    Attributes:
        threads: Number of threads that the function may use; None if the child process does not say.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        """Starts `python -m ARGUMENTS`, which must call `serve`, and waits until it is ready.

        Args:
            arguments: Module and flags.
            environment: Environment variables to set in addition to those of this process.
            folder: Working directory, from which modules are imported first. Defaults to the current directory.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=folder,
        )
        threads = self._read_reply(_READY)
        self.threads = int(threads) if threads else None

    def run(self) -> Seconds:
        """Runs the function once and returns its time.

        Raises:
            RuntimeError: The child process has exited.
        """
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return Seconds(*map(float, self._read_reply("seconds").split()))

    def close(self) -> None:
        """Stops the child process."""
        self._process.stdin.close()
        self._process.wait()

    def _read_reply(self, keyword: str) -> str:
        """Returns the text after the keyword of the next line that starts with it."""
        for line in self._process.stdout:  # libraries may print other lines
            first_word, _, text = line.strip().partition(" ")
            if first_word == keyword:
                return text
        raise RuntimeError(f"{' '.join(self._process.args[1:])} exited with status {self._process.wait()}")


def use_cpu() -> None:
    """Makes JAX use the CPU in this process and its child processes, even if there is an accelerator."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def use_cores(count: int) -> None:
    """Restricts this process to `count` cores, on Linux. Must be called before a library starts its threads."""
    cores = list_usable_cores()
    if count < len(cores) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[:count])


def serve(function: Callable[[], Any], warm_ups: int = 2, untimed_runs: int = 0, threads: int | None = None) -> None:
    """Runs in the child process: calls `function` once per line on standard input and prints its time.

    Args:
        function: Function to time. It must block until its results are available.
        warm_ups: Number of calls before the first timed one.
        untimed_runs: Number of untimed calls before each timed one. Set it for functions that are called without
            pauses in practice, because while another side runs, CPU caches are overwritten and freed memory is returned
            to the kernel (and by a virtual machine to its host, after which each page causes a fault).
        threads: Number of threads that the function may use. Defaults to one per core that this process may use.
    """
    for _ in range(warm_ups):
        function()
    print(_READY, threads or len(list_usable_cores()), flush=True)
    for _ in sys.stdin:
        for _ in range(untimed_runs):
            function()
        seconds, _ = time_call(function)
        print("seconds", *seconds, flush=True)


def time_call(function: Callable[..., Any], *arguments: Any) -> tuple[Seconds, Any]:
    """Calls a function, and returns its time and its result."""
    wall, cpu = time.perf_counter(), _get_cpu_seconds()
    result = function(*arguments)
    return Seconds(time.perf_counter() - wall, _get_cpu_seconds() - cpu), result


def _get_cpu_seconds() -> float:
    process, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return process.ru_utime + process.ru_stime + children.ru_utime + children.ru_stime


def alternate(sides: Mapping[str, Side], rounds: int, conditions: Conditions | None = None) -> dict[str, Seconds]:
    """Runs every side once per round and returns the median times of each side.

    Args:
        sides: Child processes by name.
        rounds: Number of rounds.
        conditions: Where the load from other processes during the rounds is recorded.
    """
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    with conditions.measured() if conditions else contextlib.nullcontext():
        for _ in range(rounds):
            for name, side in sides.items():
                times[name].append(side.run())
    return {name: take_median(runs) for name, runs in times.items()}


def take_median(runs: Sequence[Seconds]) -> Seconds:
    """Returns the median of each clock."""
    return Seconds(*map(statistics.median, zip(*runs, strict=True)))


def compare(seconds: Mapping[str, Seconds], images: int) -> dict[str, dict[str, float]]:
    """Compares the side "ours" with each other side.

    Args:
        seconds: Median times of each side.
        images: Number of images per run.

    Returns:
        Results in images per second, by name of the other side; see `print_result`. `cpu_ratio` is the ratio of the
        CPU times. Both times of each side are also listed, in seconds per run.
    """
    ours = seconds["ours"]
    return {
        name: {
            "ours": images / ours.wall,
            "peer": images / peer.wall,
            "ratio": peer.wall / ours.wall,
            "cpu_ratio": peer.cpu / ours.cpu,
            "ours_seconds": ours.wall,
            "ours_cpu_seconds": ours.cpu,
            "peer_seconds": peer.wall,
            "peer_cpu_seconds": peer.cpu,
        }
        for name, peer in seconds.items()
        if name != "ours"
    }


def print_times(seconds: Mapping[str, Seconds], amount: float, unit: str, label: str = "") -> None:
    """Prints the rate of each side, and the median of both of its clocks.

    Args:
        seconds: Median times of each side.
        amount: Amount of work per run, in units such as images.
        unit: Unit of the rate, such as "images/s".
        label: Text at the start of each line.
    """
    for name, (wall, cpu) in seconds.items():
        times = f"wall time {1e3 * wall:8.1f} ms, CPU time {1e3 * cpu:8.1f} ms"
        print(f"{label}{name:24} {amount / wall:9.2f} {unit}; per run: {times}", flush=True)


@contextlib.contextmanager
def start_sides(commands: Mapping[str, Command]) -> Iterator[dict[str, Side]]:
    """Starts a child process from each `(arguments, environment)` pair, and stops all of them on exit."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, (arguments, environment) in commands.items():
            start = time.perf_counter()
            sides[name] = side = Side(arguments, environment)
            stack.callback(side.close)
            threads = f" with {side.threads} threads" if side.threads else ""
            print(f"{name}: ready after {time.perf_counter() - start:.0f} s{threads}", flush=True)
        yield sides


def print_result(name: str, comparisons: Mapping[str, Mapping[str, float]], unit: str, conditions: Conditions) -> None:
    """Prints whether the figures are final, and then one line of JSON.

    The JSON contains the comparison with the lowest ratio, all comparisons under the key `cells`, and the conditions
    (`Conditions.report`).

    Args:
        name: Name of the benchmark.
        comparisons: `ours` and `peer` in `unit`, and `ratio`, which is above 1 if ours is better, by comparison.
        unit: Unit of `ours` and `peer`.
        conditions: Conditions of the benchmark.
    """
    rounded = {
        label: {key: _round(value) for key, value in comparison.items()} for label, comparison in comparisons.items()
    }
    worst = min(rounded.values(), key=lambda comparison: comparison["ratio"])
    summary = {key: worst[key] for key in ("ratio", "ours", "peer")}
    print(json.dumps({"name": name, **summary, "unit": unit, **conditions.report(), "cells": rounded}))


def _round(value: float) -> float:
    """Rounds to three decimal places, or to four significant digits if that is more precise."""
    return round(value, 3) if abs(value) >= 1 else float(f"{value:.4g}")
