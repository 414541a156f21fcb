"""A second run in the workdir of a run is refused, and the first one is not disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resume_run import ROOT, has_trained, list_saved_steps, log_path

STEPS = ("--config.train.steps=40", "--config.train.eval_every=40")


def wait_until(condition, process: subprocess.Popen, log: Path) -> None:
    while not condition():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_second_run_in_a_workdir_is_refused_and_the_first_ends_undisturbed(launcher, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "second.log"
    first = launcher.start(workdir, *STEPS)
    try:
        wait_until((workdir / "training.lock").exists, first, log_path(workdir))
        # Stopped, so that it cannot end before the second run starts; its process still holds the lock.
        first.send_signal(signal.SIGSTOP)
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        second = launcher.start(workdir, *STEPS, log=log)
        assert second.wait(timeout=120) == 1
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in log.read_text()
        assert f"error: --workdir={workdir} is in use by another training run (process {first.pid} on " in lines[0]
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}.keys() == before.keys()
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0, log_path(workdir).read_text()
    finally:
        first.kill()
    assert list_saved_steps(workdir)[-1] == 40 and not (workdir / "training.lock").exists()


@pytest.mark.long
def test_two_simultaneous_starts_end_like_one(launcher, tmp_path):
    workdir = tmp_path / "run"
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    processes = [launcher.start(workdir, *STEPS, log=log) for log in logs]
    statuses = [process.wait() for process in processes]
    assert sorted(statuses) == [0, 1], [log.read_text() for log in logs]
    assert "is in use by another training run" in logs[statuses.index(1)].read_text()
    assert list_saved_steps(workdir)[-1] == 40


@pytest.mark.long
def test_a_killed_run_leaves_a_lock_that_the_next_start_takes_over_at_once(launcher, tmp_path):
    workdir = tmp_path / "run"
    process = launcher.stop_when(workdir, has_trained(2), signal.SIGKILL)
    assert json.loads((workdir / "training.lock").read_text())["pid"] == process.pid
    launcher.complete(workdir, *STEPS)
    assert not (workdir / "training.lock").exists()


@pytest.mark.slow
def test_a_run_can_be_evaluated_and_used_while_it_trains(launcher, small_workdir, small_images):
    """The lock is held by this process; evaluation and captioning do not take it."""
    from etils import epath

    from caption_jax.runs.lock import lock_workdir

    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    image = small_images / "images" / "00.png"
    with lock_workdir(epath.Path(small_workdir)):
        for arguments in (["evaluate", "--split=val"], ["caption", str(image)]):
            command = [sys.executable, "main.py", *arguments, f"--workdir={small_workdir}"]
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
