"""Workdirs without permissions, and interrupted commands. Tests may run as root, so permissions are simulated."""

from __future__ import annotations

import errno
import os

import pytest
from small_run import run_main
from wrong_usages import read_error

from caption_jax.cli import command, workdir_flag
from caption_jax.cli.exit_status import print_error
from caption_jax.errors import WorkdirError


@pytest.fixture
def denied(monkeypatch) -> set[int]:
    """Kinds of access, such as `os.W_OK`, that are denied for all files."""
    kinds: set[int] = set()
    monkeypatch.setattr(os, "access", lambda path, mode: not any(mode & kind for kind in kinds))
    return kinds


def test_a_workdir_without_permissions_is_rejected_before_any_work(denied, tmp_path, capsys):
    denied.add(os.W_OK)
    assert run_main("train", "--config=shapes", f"--workdir={tmp_path / 'run'}", reports_errors=True) == 1
    assert f"no permission to write to {tmp_path}; set --workdir" in read_error(capsys.readouterr().err)
    workdir_flag.check("caption", str(tmp_path))  # does not write
    workdir_flag.check("train", str(tmp_path), writes=False)  # a dry run
    denied.add(os.R_OK)
    with pytest.raises(WorkdirError, match=f"no permission to read {tmp_path}"):
        workdir_flag.check("caption", str(tmp_path))
    workdir_flag.check("train", "gs://bucket/run")  # cannot be checked


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_errors_of_the_disk_are_reported_in_one_line(code, capsys):
    assert print_error(OSError(code, os.strerror(code), "/data/run"), "caption-jax train") == 1
    message = read_error(capsys.readouterr().err)
    assert message.startswith(f"error: /data/run: {os.strerror(code)}") and "\n" not in message.strip()
    with pytest.raises(OSError):
        print_error(OSError(errno.EBADF, "a bug"), "caption-jax train")


def test_an_interrupted_command_exits_with_the_status_of_a_signal(monkeypatch, capsys):
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run_command_line", interrupt)
    assert run_main("configs") == 130
    assert capsys.readouterr().err == "interrupted\n"
