"""Only one training run at a time holds the lock of a workdir, and a lock whose process has ended is taken over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from caption_jax.errors import LockedError, WorkdirError
from caption_jax.runs import lock, lock_files
from caption_jax.runs.lock import LOCK_FILE, acquire, lock_workdir
from caption_jax.runs.lock_holder import Holder, format_duration, parse_holder, this_process


@pytest.fixture
def file(tmp_path) -> epath.Path:
    return epath.Path(tmp_path) / LOCK_FILE


@pytest.fixture(params=["local", "bucket"])
def any_file(request, tmp_path, bucket) -> epath.Path:
    """A lock on a local disk and in a bucket."""
    if request.param == "local":
        return epath.Path(tmp_path) / LOCK_FILE
    return bucket / "run" / LOCK_FILE


@pytest.fixture
def sleeper():
    """Another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def hold(file: epath.Path, age_seconds: float = 0.0, **changes) -> Holder:
    """Writes a lock as another process would, last renewed `age_seconds` ago."""
    holder = dataclasses.replace(this_process(), command="python main.py", **changes)
    file.write_text(holder.to_json())
    os.utime(file, (time.time() - age_seconds,) * 2)
    return holder


def read_start(pid: int) -> str:
    from caption_jax.runs.lock_holder import _read_process_start

    return _read_process_start(pid)


def test_a_second_run_is_refused_until_the_first_releases_the_lock(any_file):
    first = acquire(any_file)
    with pytest.raises(LockedError) as error:
        acquire(any_file)
    assert f"process {os.getpid()} on {parse_holder(any_file.read_text()).host}, started 0 s ago" in str(error.value)
    first.check()
    first.release()
    assert not any_file.exists()
    acquire(any_file).release()
    assert not any_file.parent.exists() or list(any_file.parent.iterdir()) == []


def test_the_refusal_names_the_process_its_host_its_age_and_the_remedy(file, sleeper):
    hold(file, pid=sleeper.pid, process_start=read_start(sleeper.pid), started=time.time() - 7500, host="node-3")
    with pytest.raises(LockedError) as error:
        acquire(file)
    assert str(error.value) == (
        f"--workdir={file.parent} is in use by another training run (process {sleeper.pid} on node-3, started "
        "2 h 5 min ago: python main.py): wait until it ends, stop it, or use another --workdir"
    )


def test_a_running_process_keeps_its_lock_even_if_it_was_suspended_for_long(file, sleeper):
    hold(file, age_seconds=5000, pid=sleeper.pid, process_start=read_start(sleeper.pid))
    with pytest.raises(LockedError):
        acquire(file)


@pytest.mark.parametrize("state", ["reaped", "zombie"])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(file, sleeper, state):
    hold(file, pid=sleeper.pid, process_start=read_start(sleeper.pid))
    sleeper.kill()
    if state == "reaped":
        sleeper.wait()
    else:
        deadline = time.monotonic() + 10
        while read_start(sleeper.pid) != "ended" and time.monotonic() < deadline:
            time.sleep(0.01)
    acquired = acquire(file)
    assert parse_holder(file.read_text()).pid == os.getpid()
    acquired.release()
    assert list(file.parent.iterdir()) == []


def test_a_process_that_reuses_the_id_of_the_holder_is_told_apart(file, sleeper):
    hold(file, pid=sleeper.pid, process_start="1")
    acquire(file).release()


def test_a_recent_lock_of_another_machine_is_respected_although_its_process_id_is_unknown_here(file):
    hold(file, pid=1 << 22, host="node-7", machine="another boot")
    with pytest.raises(LockedError, match=rf"on node-7.*; if it no longer runs, start again 5 min .* or delete {file}"):
        acquire(file)


def test_the_lock_of_another_machine_is_taken_over_once_it_has_not_been_renewed_for_minutes(file):
    hold(file, age_seconds=lock.STALE_SECONDS + 5, machine="another boot")
    acquire(file).release()


def test_a_lock_that_may_be_stale_is_watched(file, monkeypatch):
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(lock, "STALE_SECONDS", 100.5)
    hold(file, age_seconds=100, machine="another boot")
    acquire(file).release()  # it was not renewed

    hold(file, age_seconds=100, machine="another boot")
    monkeypatch.setattr(lock, "STALE_SECONDS", 150)
    timer = threading.Timer(0.2, os.utime, [file])
    timer.start()
    with pytest.raises(LockedError):
        acquire(file)
    timer.join()


@pytest.mark.parametrize("content", ["", "{", '{"token": "../../x", "pid": 1}', "[]"])
def test_a_damaged_lock_is_respected_until_it_is_old(file, monkeypatch, content):
    monkeypatch.setattr(lock, "_INCOMPLETE_SECONDS", 0.05)
    file.write_text(content)
    with pytest.raises(LockedError, match="an unknown process"):
        acquire(file)
    os.utime(file, (time.time() - 1000,) * 2)
    acquire(file).release()


def test_a_process_that_was_killed_while_it_took_over_a_lock_does_not_block_the_next_one(file, sleeper):
    sleeper.kill()
    sleeper.wait()
    stale = hold(file, pid=sleeper.pid)
    claim = file.with_name(f".{LOCK_FILE}.{stale.token}")
    hold(claim, pid=sleeper.pid)
    acquire(file).release()
    assert list(file.parent.iterdir()) == []


def test_locks_work_on_disks_without_hard_links(file, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lock_files.os, "link", refuse)
    first = acquire(file)
    with pytest.raises(LockedError):
        acquire(file)
    first.release()
    assert list(file.parent.iterdir()) == []


@pytest.fixture
def quick_renewal(monkeypatch) -> None:
    monkeypatch.setattr(lock, "RENEWAL_SECONDS", 0.02)


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


def test_a_lock_is_renewed(any_file, quick_renewal):
    held = acquire(any_file)
    if "://" not in str(any_file):
        os.utime(any_file, (time.time() - 1000,) * 2)
    time.sleep(0.2)
    assert lock_files.seconds_since_renewal(any_file) < 2
    held.release()


def test_a_run_whose_lock_was_taken_over_ends_and_leaves_the_lock(file, quick_renewal):
    held = acquire(file)
    hold(file, host="node-9")
    wait_for(lambda: not held._thread.is_alive())
    with pytest.raises(LockedError, match=r"taken over by another run .*node-9"):
        held.check()
    held.release()
    assert parse_holder(file.read_text()).host == "node-9"


def test_a_deleted_lock_is_created_again(any_file, quick_renewal):
    (any_file.parent / "config.json").write_text("{}")  # a folder of a bucket exists only as long as its files
    held = acquire(any_file)
    any_file.unlink()
    wait_for(any_file.exists)
    held.check()
    held.release()
    assert not any_file.exists()


def test_a_deleted_workdir_ends_the_run(file, quick_renewal):
    held = acquire(file)
    shutil.rmtree(file.parent)
    wait_for(lambda: not held._thread.is_alive())
    with pytest.raises(WorkdirError, match="was deleted during training"):
        held.check()
    held.release()


def test_a_failed_start_leaves_neither_a_lock_nor_an_empty_workdir(tmp_path):
    workdir = epath.Path(tmp_path) / "runs" / "a"
    with pytest.raises(ZeroDivisionError), lock_workdir(workdir):
        assert (workdir / LOCK_FILE).exists()
        _ = 1 / 0
    assert not workdir.exists()


def test_a_workdir_that_existed_is_not_deleted(tmp_path):
    with lock_workdir(epath.Path(tmp_path)):
        pass
    assert tmp_path.exists() and not list(tmp_path.iterdir())


def test_durations_are_rounded_down():
    assert [format_duration(seconds) for seconds in (-3, 59.9, 60, 3600, 90061)] == [
        *("0 s", "59 s", "1 min", "1 h 0 min", "25 h 1 min")
    ]


@pytest.mark.parametrize("state", ["free", "stale"])
def test_exactly_one_of_several_simultaneous_starts_takes_the_lock(file, state):
    """Repeats 25 races of six processes, for a free lock or for a lock whose process has ended."""
    script = Path(__file__).resolve().parents[1] / "lock_race.py"
    command = [sys.executable, script, file, "6", "25", state]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    outcomes = [json.loads(line) for line in process.stdout.splitlines()]
    assert outcomes == [{"taken": 1, "refused": 5}] * 25, process.stderr
    assert list(file.parent.iterdir()) == []
