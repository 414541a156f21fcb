"""A command restarts itself once to request huge pages, unless another program runs it, and exits quickly.

Also the command line that a process was started with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caption_jax.runtime.process import MALLOC_SETTINGS

SCRIPT = """
import os, sys
from caption_jax.runtime.process import restart_with_malloc_settings
print("start", flush=True)
restart_with_malloc_settings(__file__)
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""
RUNNER = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); print('still running')"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="requires glibc")

SETTINGS = MALLOC_SETTINGS["GLIBC_TUNABLES"]


def run_python(tmp_path, *arguments: str, **environment: str) -> list[str]:
    """Writes the script to `tmp_path`, and returns the output lines of a Python process."""
    (tmp_path / "program.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | environment
    process = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return process.stdout.splitlines()


def test_a_command_restarts_itself_with_the_same_arguments(tmp_path):
    output = run_python(tmp_path, "program.py", "one argument", "--two")
    assert output == ["start", "start", "['one argument', '--two'] " + SETTINGS]


def test_existing_malloc_settings_are_preserved(tmp_path):
    assert run_python(tmp_path, "program.py", GLIBC_TUNABLES="a.b=1") == ["start", "[] a.b=1"]


def test_a_package_run_with_m_restarts_itself(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    output = run_python(tmp_path, "-m", "package", "argument", **environment)
    assert output == ["start", "start", "['argument'] " + SETTINGS]


def test_a_program_that_runs_the_command_is_not_restarted(tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER)
    assert run_python(tmp_path, "-m", "runner", str(tmp_path / "program.py"))[-1] == "still running"
    assert run_python(tmp_path, "-c", RUNNER, str(tmp_path / "program.py"))[-1] == "still running"


def test_fast_exit_flushes_output_and_skips_exit_handlers_of_a_command(tmp_path):
    script = (
        "import atexit, sys\n"
        "from caption_jax.runtime.process import fast_exit\n"
        "atexit.register(print, 'exit handler')\n"
        "sys.stdout.write('output')\n"
        "fast_exit(__file__, 3)\n"
    )
    (tmp_path / "program.py").write_text(script)
    process = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (3, "output")
    runner = subprocess.run([sys.executable, "-c", RUNNER, tmp_path / "program.py"], capture_output=True, text=True)
    assert runner.stdout.split() == ["outputstill", "running", "exit", "handler"]


def test_garbage_collection_is_paused_only_in_a_command(tmp_path):
    script = (
        "import gc\n"
        "from caption_jax.runtime.process import paused_garbage_collection\n"
        "with paused_garbage_collection(__file__):\n"
        "    print(gc.isenabled())\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    (tmp_path / "program.py").write_text(script)

    def run(*arguments: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, *arguments, str(tmp_path / "program.py")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return process.stdout.splitlines()

    assert run() == ["False", "True True"]
    assert run("-c", RUNNER) == ["True", "True False", "still running"]


def test_the_command_can_be_copied_to_a_shell(tmp_path):
    program = "from caption_jax.runtime.process import current_command\nprint(current_command())\n"
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "caption-command").write_text(program)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def read_command(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return process.stdout.strip()

    assert read_command("program.py", "--a=1", "two words") == "python program.py --a=1 'two words'"
    assert read_command("-m", "package", "--a=1") == "python -m package --a=1"
    assert read_command(str(tmp_path / "caption-command"), "--a=1") == "caption-command --a=1"
    assert read_command("-c", program, "--a=1") == ""  # like a notebook, it has no command


def test_the_next_commands_start_the_same_program(tmp_path):
    program = "from caption_jax.runtime.process import make_command\nprint(make_command('search', 'two words'))\n"
    (tmp_path / "program.py").write_text(program)
    command = tmp_path / "bin" / "caption-command"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{program}")
    command.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def read_command(*arguments: str, **environment: str) -> str:
        process = subprocess.run(
            arguments,
            env={**os.environ, **paths, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return process.stdout.strip().removesuffix(" search 'two words'")

    assert read_command("./python", "program.py", "--a=1") == "./python program.py"
    assert read_command("bin/caption-command", "--a=1") == "bin/caption-command"
    on_path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    assert read_command("caption-command", PATH=on_path) == "caption-command"
    assert read_command(sys.executable, "-c", program) == "caption-jax"
