"""A run that is repeatedly killed at random times gives the same result as an uninterrupted run.

python -m pytest -m long tests/long/test_kills.py --kills=200
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from resume_run import STEPS, assert_same_result, has_trained, is_writing, list_saved_steps

pytestmark = pytest.mark.long


def sample_kill_time(rng: random.Random, workdir: Path) -> tuple[Callable[[Path], bool], float]:
    """Returns a condition on the workdir, and the delay in seconds between the condition and the kill."""
    last_saved = (list_saved_steps(workdir) or [0])[-1]
    step = rng.randint(min(last_saved + 1, STEPS), STEPS)  # a killed run may have saved its last step
    event = rng.choice(["start", "step", "last", "best"])  # "last" and "best" are checkpoints being written
    if event == "start":  # imports, restoring a checkpoint, the first compilation
        return lambda folder: True, rng.uniform(0, 15)
    if event == "step":
        return has_trained(step), rng.uniform(0, 0.05)
    return is_writing(step, event), rng.choice([0, rng.uniform(0, 0.02)])


def test_a_repeatedly_killed_run_gives_the_same_result_as_an_uninterrupted_run(launcher, get_option, tmp_path):
    uninterrupted_workdir = tmp_path / "uninterrupted"
    launcher.complete(uninterrupted_workdir)
    rng = random.Random(get_option("seed"))
    kills, finished_runs, was_killed = 0, 0, True
    while kills < get_option("kills"):
        workdir = tmp_path / f"run_{finished_runs}"
        was_killed = launcher.kill(workdir, *sample_kill_time(rng, workdir))
        kills += was_killed
        if not was_killed:
            assert_same_result(workdir, uninterrupted_workdir)
            finished_runs += 1
    if was_killed:
        launcher.complete(workdir)
        assert_same_result(workdir, uninterrupted_workdir)
