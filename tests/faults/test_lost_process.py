"""A process of a run is killed or suspended: the others end within seconds, and the run resumes to the same end."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator

import full_disk
import pytest
from process_faults import DUMPS, HOST, RunStarter, kill_repeatedly
from process_group import PAIR_FLAGS
from resume_run import assert_same_result, list_saved_steps

from caption_jax.runtime.liveness import PEER_FAILED


@pytest.fixture
def start(launcher, tmp_path) -> Iterator[RunStarter]:
    starter = RunStarter(launcher, tmp_path)
    yield starter
    starter.kill_all()


@pytest.mark.slow
def test_a_run_of_which_a_process_is_killed_ends_as_if_undisturbed(start, tmp_path):
    flags, rng = ("--config.train.steps=12",), random.Random(0)
    undisturbed = start(tmp_path / "undisturbed", 2, *PAIR_FLAGS, *flags)
    assert undisturbed.wait() == [0, 0], undisturbed.logs[0].read_text()
    kill_repeatedly(start, tmp_path / "killed", (*PAIR_FLAGS, *flags), 12, [(1, "evaluation")], rng, 2)
    assert_same_result(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.long
@pytest.mark.parametrize("suspended", [0, 1])
def test_a_suspended_process_is_lost_after_the_heartbeat(start, tmp_path, suspended):
    workdir = tmp_path / "run"
    processes = start(workdir, 2, *PAIR_FLAGS, "--config.train.steps=2000", "--heartbeat=3")
    assert processes.lose(suspended, lambda: bool(list_saved_steps(workdir)), 0.1, signal.SIGSTOP)
    time.sleep(3)
    processes.check_survivors(suspended, "has been silent for 3 s (--heartbeat): see its log and its host; step ")


@pytest.mark.long
def test_an_error_of_one_process_during_training_ends_the_others(start, tmp_path):
    workdir = tmp_path / "run"
    processes = start(
        workdir, 2, *PAIR_FLAGS, "--config.train.steps=2000", script=full_disk.__file__, FULL_DISK_PROCESS="1"
    )
    assert processes.wait(300) == [PEER_FAILED, 1], processes.logs[0].read_text()
    first, second = ([line for line in log.read_text().splitlines() if "error: " in line] for log in processes.logs)
    (reason,) = (line.removeprefix("error: ") for line in second)
    assert reason.startswith(full_disk.MESSAGE)
    free = r"\([^)]*\)"  # free space changes
    (line,) = first
    assert re.sub(free, "", line.removeprefix("error: process 1")).startswith(
        re.sub(free, "", f" ({HOST}) failed: {reason}; step 5 is saved: run the same command again to resume")
    )
    assert not any(dump in log.read_text() for dump in DUMPS for log in processes.logs)
