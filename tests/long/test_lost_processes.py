"""Runs of 2 and 4 processes, each of which is killed at random moments, end as if undisturbed.

python -m pytest -n 0 -m long tests/long/test_lost_processes.py --kills=24
"""

from __future__ import annotations

import collections
import random

import pytest
from process_faults import EVENTS, RunStarter, kill_repeatedly
from process_group import PAIR_FLAGS
from resume_run import RunLauncher, assert_same_result

pytestmark = pytest.mark.long

STEPS = 50
FOUR_FLAGS = ("--config.mesh.data=4", "--config.model.encoder.norm_group_size=1", "--config.data.eval_batch_size=4")


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_is_killed_in_turn(small_images, compile_cache, get_option, tmp_path, count):
    flags = (*PAIR_FLAGS, f"--config.train.steps={STEPS}", *(FOUR_FLAGS if count == 4 else ()))
    rng, start = random.Random(get_option("seed")), RunStarter(RunLauncher(small_images, compile_cache), tmp_path)
    undisturbed = tmp_path / "undisturbed"
    try:
        assert start(undisturbed, count, *flags).wait() == [0] * count
        kills = [(number % count, rng.choice(EVENTS)) for number in range(get_option("kills"))]
        for begin in range(0, len(kills), STEPS // 10):  # a run of 50 steps is killed a few times only
            workdir = tmp_path / f"run_{begin}"
            kill_repeatedly(start, workdir, flags, STEPS, kills[begin : begin + STEPS // 10], rng, count)
            assert_same_result(workdir, undisturbed)
        print(f"{count} processes, {dict(collections.Counter(event for _, event in kills))}")
    finally:
        start.kill_all()
