"""Runs survive kills at chosen system calls, slow disks and clocks that jump; the library that causes them works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resume_run import assert_same_result, log_path
from system_call_faults import Fault, clock_environment, fault_environment, read_faults
from tiers import slow_or_long

STEPS = ("--config.train.steps=20", "--config.train.eval_every=10", "--config.train.checkpoint_every=5")
WRITER = """
import os, sys
for number in range(4):
    try:
        with open(sys.argv[1], "ab", buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        print(number, error.errno)
os.replace(sys.argv[1], sys.argv[1] + ".renamed")
"""


def run_writer(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Appends to a file four times in a child process, then renames it."""
    command = [sys.executable, "-c", WRITER, file]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_calls_fail_for_the_matching_files_after_a_number_of_calls(fault_library, tmp_path):
    log = tmp_path / "log"
    fault = Fault("write", f"{tmp_path}/a*", "EIO", after=1, times=2)
    result = run_writer(tmp_path / "a", fault_environment(fault_library, [fault], log))
    assert result.returncode == 0 and result.stdout == "1 5\n2 5\n", result.stderr
    assert (tmp_path / "a.renamed").read_bytes() == b"xx"
    assert read_faults(log) == [("write", f"{tmp_path}/a")] * 2
    result = run_writer(tmp_path / "b", fault_environment(fault_library, [fault], log))
    assert result.stdout == "" and (tmp_path / "b.renamed").read_bytes() == b"xxxx"


def test_a_process_is_killed_before_a_call(fault_library, tmp_path):
    log = tmp_path / "log"
    result = run_writer(tmp_path / "a", fault_environment(fault_library, [Fault("rename", "*.renamed", "kill")], log))
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"xxxx" and read_faults(log) == [("rename", f"{tmp_path}/a.renamed")]


def test_calls_wait(fault_library, tmp_path):
    start = time.monotonic()
    fault = Fault("open", "*/a", "delay:150")
    assert run_writer(tmp_path / "a", fault_environment(fault_library, [fault], tmp_path / "log")).returncode == 0
    assert time.monotonic() - start >= 0.6


def test_the_clock_jumps(fault_library):
    code = "import time; print(time.time())"
    environment = {**os.environ, **clock_environment(fault_library, -86400)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert 86300 < time.time() - float(result.stdout) < 86500


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    launcher.complete(workdir, *STEPS)
    return workdir


KILLS = [("link", 0), ("fsync", 6), ("rename", 9), ("rename", 17), ("mkdir", 14)]


@pytest.mark.parametrize(("calls", "after"), slow_or_long(KILLS, slow=KILLS[1:3]))
def test_a_run_that_is_killed_before_a_system_call_resumes(
    launcher, undisturbed, fault_library, tmp_path, calls, after
):
    """The lock is linked, files are written atomically, and checkpoints are created and committed."""
    workdir, log = tmp_path / "run", tmp_path / "faults.log"
    fault = Fault(calls, f"{workdir}/*", "kill", after=after)
    process = launcher.start(workdir, *STEPS, **fault_environment(fault_library, [fault], log))
    assert process.wait(timeout=300) == -signal.SIGKILL, log_path(workdir).read_text()
    assert len(read_faults(log)) == 1
    launcher.complete(workdir, *STEPS)
    assert_same_result(workdir, undisturbed)
    assert not (workdir / "training.lock").exists()


@pytest.mark.parametrize("kind", slow_or_long(["slow disk", "clock forward", "clock back"], slow=["clock forward"]))
def test_a_run_on_a_slow_disk_or_with_a_clock_that_jumps_ends_undisturbed(
    launcher, undisturbed, fault_library, tmp_path, kind
):
    workdir = tmp_path / "run"
    environment = {
        "slow disk": fault_environment(
            fault_library, [Fault("write,fsync,rename", f"{workdir}/*", "delay:20")], tmp_path / "faults.log"
        ),
        # Orbax measures its timeouts of 20 minutes with this clock, so a save fails if it jumps further meanwhile.
        "clock forward": clock_environment(fault_library, 600, after_seconds=6),
        "clock back": clock_environment(fault_library, -86400, after_seconds=6),
    }[kind]
    process = launcher.start(workdir, *STEPS, **environment)
    assert process.wait(timeout=300) == 0, log_path(workdir).read_text()
    assert_same_result(workdir, undisturbed)
