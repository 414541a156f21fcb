"""A command that asks for huge pages starts anew once, with its own arguments; whatever else runs it goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from caption_jax.runtime.process import restart_with_huge_pages
print("start", flush=True)
restart_with_huge_pages(__file__)
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""
RUNNER = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); print('goes on')"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def lines(tmp_path, *command: str, **given: str) -> list[str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | given
    found = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return found.stdout.splitlines()


def test_a_command_starts_anew(tmp_path):
    found = lines(tmp_path, "program.py", "one argument", "--two")
    assert found == ["start", "start", "['one argument', '--two'] glibc.malloc.hugetlb=1"]


def test_settings_of_malloc_that_are_there_stay(tmp_path):
    assert lines(tmp_path, "program.py", GLIBC_TUNABLES="a.b=1") == ["start", "[] a.b=1"]


def test_what_runs_the_command_within_itself_is_not_replaced(tmp_path):
    assert lines(tmp_path, "-c", RUNNER, str(tmp_path / "program.py"))[-1] == "goes on"


def test_a_command_ends_at_once_and_loses_nothing(tmp_path):
    program = (
        "import atexit, sys\n"
        "from caption_jax.runtime.process import fast_exit\n"
        "atexit.register(print, 'exit handler')\n"
        "sys.stdout.write('said')\n"
        "fast_exit(__file__, 3)\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "said")
    within = subprocess.run([sys.executable, "-c", RUNNER, tmp_path / "program.py"], capture_output=True, text=True)
    assert within.stdout.split() == ["saidgoes", "on", "exit", "handler"]
