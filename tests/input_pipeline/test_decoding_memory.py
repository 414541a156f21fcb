"""Images that are decoded at the same time share a budget of memory, across threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from input_pipeline.decoding_memory import SMALL_BYTES, DecodingBudget

ROOT = Path(__file__).resolve().parents[2]
UNIT = 2 * SMALL_BYTES
SECONDS = 10

# Arguments: lock file, size. Waits for a line between reserving and releasing memory for an image.
PROCESS = f"""
import sys
from input_pipeline.decoding_memory import DecodingBudget
budget = DecodingBudget()
budget.share_with_processes(2, open(sys.argv[1], "r+b"))
print("started", flush=True)
with budget.reserve(int(sys.argv[2]), {4 * UNIT}):
    print("decoding", flush=True)
    sys.stdin.readline()
"""


class Decoding(threading.Thread):
    """A thread that reserves memory until it is told to stop."""

    def __init__(self, budget: DecodingBudget, size: int, total: int):
        super().__init__(daemon=True)
        self.arguments, self.budget = (size, total), budget
        self.started, self.stopped = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.budget.reserve(*self.arguments):
            self.started.set()
            self.stopped.wait(SECONDS)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def test_images_wait_while_the_budget_is_exhausted():
    budget = DecodingBudget()
    first, second = (Decoding(budget, 2 * UNIT, 4 * UNIT) for _ in range(2))
    assert first.started.wait(SECONDS) and second.started.wait(SECONDS)
    third = Decoding(budget, UNIT, 4 * UNIT)
    assert not third.started.wait(0.1)
    first.stop()
    assert third.started.wait(SECONDS)
    second.stop()
    third.stop()


def test_small_images_never_wait():
    budget = DecodingBudget()
    large = Decoding(budget, 4 * UNIT, 4 * UNIT)
    assert large.started.wait(SECONDS)
    with budget.reserve(SMALL_BYTES, 4 * UNIT):
        pass
    large.stop()


def test_an_image_that_needs_the_whole_budget_gets_its_turn():
    """Images that arrive later do not overtake it."""
    budget = DecodingBudget()
    first = Decoding(budget, UNIT, 4 * UNIT)
    assert first.started.wait(SECONDS)
    large = Decoding(budget, 4 * UNIT, 4 * UNIT)
    time.sleep(0.1)
    later = Decoding(budget, UNIT, 4 * UNIT)
    assert not large.started.wait(0.1) and not later.started.is_set()
    first.stop()
    assert large.started.wait(SECONDS) and not later.started.is_set()
    large.stop()
    assert later.started.wait(SECONDS)
    later.stop()


def test_memory_is_released_after_an_error():
    budget = DecodingBudget()
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), budget.reserve(4 * UNIT, 4 * UNIT):
            raise ValueError("damaged")


@pytest.mark.parametrize(
    ("first", "second", "waits"), [(UNIT, UNIT, False), (3 * UNIT, UNIT, True), (UNIT, 3 * UNIT, True)]
)
def test_processes_share_the_budget(first, second, waits, tmp_path):
    """An image that needs more than its share of the budget waits for the other process, even if that is killed."""
    locks = tmp_path / "locks"
    locks.touch()
    processes: list[subprocess.Popen] = []

    def start(size: int) -> subprocess.Popen:
        command = [sys.executable, "-c", PROCESS, str(locks), str(size)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        assert processes[-1].stdout.readline() == "started\n"
        return processes[-1]

    try:
        assert start(first).stdout.readline() == "decoding\n"
        start(second)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(processes[1].stdout.readline()), daemon=True)
        reader.start()
        reader.join(0.3)
        assert bool(lines) != waits
        processes[0].kill()
        reader.join(SECONDS)
        assert lines == ["decoding\n"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
