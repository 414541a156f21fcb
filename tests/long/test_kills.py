"""A run that is repeatedly killed at random times gives the same result as an uninterrupted run.

python -m pytest -m long tests/long/test_kills.py --kills=200
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from resume_run import STEPS, Runs, assert_same_result, has_trained, is_writing, list_saved_steps

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(small_images, compile_cache) -> Runs:
    return Runs(small_images, compile_cache)


def random_moment(rng: random.Random, workdir: Path) -> tuple[Callable[[Path], bool], float]:
    """Returns the state of the workdir that arms the kill, and the delay of the kill in seconds."""
    step = rng.randint((list_saved_steps(workdir) or [0])[-1] + 1, STEPS)
    kind = rng.choice(["start", "step", "last", "best"])
    if kind == "start":  # imports, restoring a checkpoint, the first compilation
        return lambda folder: True, rng.uniform(0, 15)
    if kind == "step":
        return has_trained(step), rng.uniform(0, 0.05)
    return is_writing(step, kind), rng.choice([0, rng.uniform(0, 0.02)])


def test_a_repeatedly_killed_run_ends_like_an_uninterrupted_one(runs, amount, tmp_path):
    uninterrupted_workdir = tmp_path / "uninterrupted"
    runs.complete(uninterrupted_workdir)
    rng = random.Random(amount("seed"))
    kills, number, killed = 0, 0, True
    while kills < amount("kills"):
        workdir = tmp_path / f"run_{number}"
        killed = runs.kill(workdir, *random_moment(rng, workdir))
        kills += killed
        if not killed:  # it finished first
            assert_same_result(workdir, uninterrupted_workdir)
            number += 1
    if killed:
        runs.complete(workdir)
        assert_same_result(workdir, uninterrupted_workdir)
