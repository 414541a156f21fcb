"""What a command says of an error: a line where the user can mend it, a traceback where the program is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small_run import ROOT

from caption_jax.config import default_config
from caption_jax.errors import message_for_the_user
from caption_jax.metrics import read_results
from caption_jax.runs.description import compute_dtype
from caption_jax.training.optimizer import make_optimizer


def caught(call) -> Exception:
    with pytest.raises(Exception) as found:
        call()
    return found.value


def test_what_the_project_raises_is_for_the_user(tmp_path):
    config = default_config().optimizer
    with config.unlocked():
        config.name = "nothing"
    assert "'nothing'" in message_for_the_user(caught(lambda: make_optimizer(config, {}, 10)))
    (tmp_path / "results.json").write_text("{")
    error = caught(lambda: read_results(tmp_path / "results.json"))  # that another error led to
    assert message_for_the_user(error) == str(error)


def test_a_library_may_pass_it_on():
    ours = caught(lambda: compute_dtype("nothing"))

    def pass_on():
        raise OSError("there is no config") from ours

    assert message_for_the_user(caught(pass_on)) == str(ours)


def test_what_python_a_library_or_a_mistake_raises_is_not(tmp_path):
    def raise_here():
        raise ValueError("a test's own")

    assert message_for_the_user(caught(raise_here)) is None
    assert message_for_the_user(caught(lambda: read_results(tmp_path / "none.json"))) is None  # pathlib's
    assert message_for_the_user(caught(lambda: default_config().nothing)) is None
    assert message_for_the_user(ValueError("never raised")) is None


def test_a_command_ends_in_one_line(tmp_path):
    command = [sys.executable, "main.py", "--mode=caption", f"--workdir={tmp_path / 'none'}", "photo.jpg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "none") in line
