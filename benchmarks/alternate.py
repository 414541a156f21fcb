"""What comparisons share: contestants in processes of their own that take turns, and the line of JSON at the end.

A contestant runs in a child process, so that two libraries share neither threads nor memory. All children stay alive;
one works while the others wait, and rounds alternate, so that a busy minute of the machine meets all of them.
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
    """What a piece of work took: by the clock, and in processor time.

    The latter is of all threads, waiting in a spin included, and of child processes that have ended.
    """

    wall: float
    processor: float


class Contestant:
    """A child process that does the same work each time it is asked to."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        """Starts `python -m ARGUMENTS`, which has to call `serve`, and waits until it is ready.

        Args:
            arguments: module and flags.
            environment: variables beside those of this process.
            folder: working directory, which modules are found in first; that of this process by default.
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
        """Does the work once. Raises RuntimeError where the child has died."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return Seconds(*map(float, self._expect("seconds").split()))

    def close(self) -> None:
        """Ends the child."""
        self._process.stdin.close()
        self._process.wait()

    def _expect(self, word: str) -> str:
        for line in self._process.stdout:  # libraries may print lines of their own
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise RuntimeError(f"{' '.join(self._process.args[1:])} ended with status {self._process.wait()}")


def use_cores(count: int) -> None:
    """Confines this process to so many cores; to be called before a library starts its threads."""
    if count < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def serve(work: Callable[[], Any], warm_ups: int = 2, uncounted: int = 0) -> None:
    """The child's side: does `work`, which returns when it is done, once for every line of its input.

    Args:
        work: what is timed.
        warm_ups: times that it is done before the first turn.
        uncounted: times that it is done at the start of each turn, for work that goes on without pauses in use. Where
            others had the machine in between, caches are cold and memory that was given back is far away: on virtual
            machines it goes to the host, and each page of it costs a fault there.
    """
    for _ in range(warm_ups):
        work()
    print(_READY, flush=True)
    for _ in sys.stdin:
        for _ in range(uncounted):
            work()
        wall, processor = time.perf_counter(), _processor_seconds()
        work()
        print("seconds", time.perf_counter() - wall, _processor_seconds() - processor, flush=True)


def _processor_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def alternate(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, Seconds]:
    """Medians of what each contestant's work took over `rounds` rounds in which all of them have a turn."""
    times: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant.run())
    return {name: Seconds(*map(statistics.median, zip(*rows, strict=True))) for name, rows in times.items()}


def compare(seconds: Mapping[str, Seconds], images: int) -> dict[str, dict[str, float]]:
    """Cells for `print_result` of each contestant but "ours": images a second, and how much processor time is saved."""
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
def contest(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> Iterator[dict[str, Contestant]]:
    """Contestants by name from their `(arguments, environment)`; they end with the block."""
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, (arguments, environment) in commands.items():
            contestants[name] = Contestant(arguments, environment)
            stack.callback(contestants[name].close)
        yield contestants


def print_result(name: str, cells: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """Prints the last line of a benchmark: the worst of its cells, and all of them.

    Args:
        name: of the benchmark.
        cells: by what was compared, `ours` and `peer` in `unit`, and the `ratio`: above 1 means that we are better.
        unit: of `ours` and `peer`.
    """
    rounded = {key: {part: round(value, 3) for part, value in cell.items()} for key, cell in cells.items()}
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
