"""Signals end every command with one line and a documented status, and no step of a training run is lost."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faulty_main
import pytest
from resume_run import (
    ROOT,
    assert_same_result,
    has_trained,
    list_saved_steps,
    log_path,
    read_rows,
)
from tiers import slow_or_long

from caption_jax.cli.exit_status import STOPPED
from caption_jax.runtime.signals import GRACE_SECONDS

# Runs Python with stdin as the controlling terminal of a new session.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

pytestmark = pytest.mark.usefixtures("unignored_signals")


@pytest.fixture(scope="module")
def uninterrupted_workdir(launcher, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    launcher.complete(workdir)
    return workdir


def wait_for(condition: Callable[[Path], bool], workdir: Path, process: subprocess.Popen) -> None:
    while not condition(workdir):
        assert process.poll() is None, log_path(workdir).read_text()
        time.sleep(0.002)


def read_session(workdir: Path) -> dict:
    return json.loads((workdir / "sessions.json").read_text())[-1]


@pytest.mark.parametrize("number", slow_or_long(SIGNALS, slow=SIGNALS[:1]))
def test_a_signal_during_training_saves_and_the_run_ends_as_if_undisturbed(
    launcher, uninterrupted_workdir, tmp_path, number
):
    workdir = tmp_path / "run"
    process = launcher.stop_when(workdir, has_trained(12), number)
    log = log_path(workdir).read_text()
    assert process.returncode == STOPPED, log
    step = list_saved_steps(workdir)[-1]
    assert step == read_rows(workdir)[-1][0] >= 12
    assert f"{number.name}: saving and stopping" in log and f"stop requested: saved step {step}" in log
    assert "Traceback" not in log
    assert read_session(workdir)["reason"] == "stop_requested"
    launcher.complete(workdir)
    assert_same_result(workdir, uninterrupted_workdir)


@pytest.mark.long
def test_a_limit_on_the_steps_of_a_process_saves_and_the_run_ends_as_if_undisturbed(
    launcher, uninterrupted_workdir, tmp_path
):
    workdir = tmp_path / "run"
    for expected_step in (25, 50):
        assert launcher.start(workdir, "--max_steps_this_run=25").wait() == STOPPED, log_path(workdir).read_text()
        assert list_saved_steps(workdir)[-1] == expected_step
        assert read_session(workdir)["detail"] == "--max_steps_this_run"
    assert "--max_steps_this_run: saved step 50; run the same command again" in log_path(workdir).read_text()
    launcher.complete(workdir, "--max_steps_this_run=10")  # reaches the last step, and evaluates
    assert_same_result(workdir, uninterrupted_workdir)


@pytest.mark.long
def test_a_run_that_nohup_starts_ignores_hangups(launcher, tmp_path):
    workdir = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = launcher.start(workdir, "--config.train.steps=30")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(has_trained(12), workdir, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0
    assert list_saved_steps(workdir)[-1] == 30


@pytest.mark.slow
def test_a_run_saves_when_its_terminal_is_closed(launcher, tmp_path):
    """The kernel sends SIGHUP, and every later write to the terminal fails."""
    workdir = tmp_path / "run"
    controller, terminal = pty.openpty()
    command = ["main.py", f"--config={launcher.config}", f"--workdir={workdir}", f"--config.data.root={launcher.data}"]
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(launcher.cache), "TERM": "xterm"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, *command], cwd=ROOT, env={**os.environ, **settings}, **streams
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    while not has_trained(12)(workdir):
        assert process.poll() is None
        try:
            os.read(controller, 2**16)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(controller)
    assert process.wait() == STOPPED
    assert list_saved_steps(workdir)[-1] == read_rows(workdir)[-1][0] >= 12


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_the_last_checkpoint_is_unharmed(
    launcher, faulty, uninterrupted_workdir, tmp_path
):
    workdir = tmp_path / "run"
    assert launcher.start(workdir, "--max_steps_this_run=10").wait() == STOPPED
    process = faulty.start(workdir, FAULT="slow_save")
    try:
        wait_for(has_trained(12), workdir, process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)  # at the same time, as by a service manager: one request
        wait_for(faulty_main.has_occurred, workdir, process)
        time.sleep(1.5)
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - start < 1
    finally:
        process.kill()
    log = log_path(workdir).read_text()
    assert "SIGTERM: second signal, ended at once" in log and "Traceback" not in log
    assert list_saved_steps(workdir) == [10]
    launcher.complete(workdir)
    assert_same_result(workdir, uninterrupted_workdir)


@pytest.mark.parametrize("seconds", slow_or_long([0.5, 2.0, 4.0], slow=[2.0]))
def test_a_signal_during_the_start_ends_in_one_line(launcher, tmp_path, seconds):
    workdir = tmp_path / "run"
    process = launcher.start(workdir, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))  # compiles
    time.sleep(seconds)
    assert_ends_in_one_line(process, workdir, GRACE_SECONDS + 2)


@pytest.mark.parametrize("fault", slow_or_long(["slow_pixels", "slow_compilation"], slow=["slow_compilation"]))
def test_a_signal_before_the_first_step_ends_in_one_line(faulty, tmp_path, fault):
    """The pixel cache is being written, or the main thread is in a compilation, which cannot be interrupted."""
    workdir = tmp_path / "run"
    process = faulty.start(workdir, "--config.data.pixel_cache.use=always", FAULT=fault)
    wait_for(faulty_main.has_occurred, workdir, process)
    assert_ends_in_one_line(process, workdir, GRACE_SECONDS + 2)


def assert_ends_in_one_line(process: subprocess.Popen, workdir: Path, seconds: float) -> None:
    log = log_path(workdir)
    before = len(log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=seconds) in (STOPPED, -signal.SIGTERM)  # the latter before Python is ready
    lines = log.read_text()[before:].splitlines()
    if process.returncode == STOPPED:
        assert [line for line in lines if "SIGTERM" in line] == lines[-1:], lines
    assert "Traceback" not in log.read_text()
    assert not list_saved_steps(workdir)
    assert not list(workdir.rglob("*.part")) or "at once" in lines[-1]


@pytest.mark.long
def test_a_signal_during_an_evaluation_saves_at_once_and_the_evaluation_is_repeated(launcher, faulty, tmp_path):
    workdir, flags = tmp_path / "run", ("--config.data.eval_batch_size=1", "--config.train.steps=20")
    process = faulty.start(workdir, *flags, FAULT="slow_evaluation")
    wait_for(faulty_main.has_occurred, workdir, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == STOPPED, log_path(workdir).read_text()
    assert list_saved_steps(workdir) == [10, 15] and not list_saved_steps(workdir, "best")
    assert [split for step, split, _ in read_rows(workdir) if step == 15] == ["train"]

    (workdir / faulty_main.MARK).unlink()
    process = faulty.start(workdir, *flags, FAULT="slow_evaluation")  # the repeated evaluation is interrupted, too
    wait_for(faulty_main.has_occurred, workdir, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == STOPPED, log_path(workdir).read_text()
    assert list_saved_steps(workdir) == [10, 15] and not list_saved_steps(workdir, "best")

    process = launcher.start(workdir, *flags)  # and killed after the repeated evaluation, before another checkpoint
    wait_for(lambda folder: list_saved_steps(folder, "best") == [15], workdir, process)
    process.kill()
    process.wait()
    launcher.complete(workdir, *flags)
    launcher.complete(tmp_path / "uninterrupted", *flags)
    assert_same_result(workdir, tmp_path / "uninterrupted")


@pytest.mark.slow
def test_a_signal_to_the_other_commands_ends_in_one_line_and_writes_nothing(
    faulty, searchable_workdir, distinct_images
):
    before = {path: path.stat().st_mtime_ns for path in searchable_workdir.glob("*.json")}
    images = str(distinct_images / "images")
    for mode, arguments in {"evaluate": (), "caption": (images,), "index": (images,)}.items():
        for number in SIGNALS[:2]:
            (searchable_workdir / faulty_main.MARK).unlink(missing_ok=True)
            log_path(searchable_workdir).unlink(missing_ok=True)
            process = faulty.start(searchable_workdir, f"--mode={mode}", *arguments, FAULT="slow_pixels")
            wait_for(faulty_main.has_occurred, searchable_workdir, process)
            process.send_signal(number)
            assert process.wait(timeout=GRACE_SECONDS + 5) == 128 + number
            log = log_path(searchable_workdir).read_text()
            assert f"interrupted ({number.name})\n" in log and "Traceback" not in log
    assert {path: path.stat().st_mtime_ns for path in searchable_workdir.glob("*.json")} == before
    assert not list(searchable_workdir.rglob("*.part"))


# A command whose exit takes a second: in an exit handler, or in a thread that Python waits for.
SLOW_EXIT = """
import atexit, sys, threading, time
from caption_jax.cli import command

def wait():
    print("exiting", flush=True)
    time.sleep(1)

def wait_after_main():
    threading.main_thread().join()
    wait()

if sys.argv.pop() == "handler":
    atexit.register(wait)
else:
    threading.Thread(target=wait_after_main).start()
command.run(__file__)
"""


@pytest.mark.parametrize("kind", ["handler", "thread"])
@pytest.mark.parametrize("arguments, status", [(("configs",), 0), (("no_such_command",), 2)])
def test_a_signal_does_not_change_the_status_of_a_command_that_is_complete(tmp_path, kind, arguments, status):
    script = tmp_path / "slow_exit.py"
    script.write_text(SLOW_EXIT)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments, kind],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert any(line == "exiting\n" for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == status
