"""A run that is killed again and again, at moments that are drawn, ends as if nothing had happened.

python -m pytest -m long tests/long/test_kills.py --kills=200
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from resume_run import STEPS, Runs, assert_same_end, has_trained, is_writing, saved_steps

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(small_images, compile_cache) -> Runs:
    return Runs(small_images, compile_cache)


def draw_moment(draw: random.Random, workdir: Path) -> tuple[Callable[[Path], bool], float]:
    """What the workdir has to look like for the kill, and the seconds from then to the kill."""
    step = draw.randint((saved_steps(workdir) or [0])[-1] + 1, STEPS)
    kind = draw.choice(["start", "step", "last", "best"])
    if kind == "start":  # imports, the restore of a checkpoint, the first compilation
        return lambda folder: True, draw.uniform(0, 15)
    if kind == "step":
        return has_trained(step), draw.uniform(0, 0.05)
    return is_writing(step, kind), draw.choice([0, draw.uniform(0, 0.02)])


def test_a_run_that_is_killed_over_and_over_ends_as_an_undisturbed_one(runs, amount, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    runs.complete(undisturbed)
    draw = random.Random(amount("seed"))
    kills, number, killed = 0, 0, True
    while kills < amount("kills"):
        workdir = tmp_path / f"run_{number}"
        killed = runs.kill(workdir, *draw_moment(draw, workdir))
        kills += killed
        if not killed:  # it came to its end first
            assert_same_end(workdir, undisturbed)
            number += 1
    if killed:
        runs.complete(workdir)
        assert_same_end(workdir, undisturbed)
