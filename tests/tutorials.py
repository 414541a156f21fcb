"""Runs the commands of README or of a page in docs/tutorials, in the order of the page, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from small_run import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
_TEST_VARIABLES = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")  # set by tests/conftest.py


def read_commands(text: str) -> list[str]:
    """Returns the commands in the shell examples of a page, except for those that install packages."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "pip install"))]


def read_python(text: str) -> list[str]:
    """Returns the Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def install_command(folder: Path, train_flags: Sequence[str]) -> dict[str, str]:
    """Writes `caption-jax` for this source tree, and returns the environment in which it is found.

    Args:
        folder: folder for the command.
        train_flags: flags that are added to `caption-jax train`.
    """
    folder.mkdir(parents=True)
    script = folder / "caption-jax"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = train ]; then set -- "$@" {" ".join(train_flags)}; fi\n'
        f'exec "{sys.executable}" -m caption_jax "$@"\n'
    )
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in _TEST_VARIABLES}
    return {
        **kept,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }


def run_tutorial(name: str, folder: Path, environment: dict[str, str]) -> str:
    """Runs the shell commands and then the Python examples of a tutorial in a folder, and returns their output."""
    text = (TUTORIALS / name).read_text()
    examples = [[sys.executable, "-c", code] for code in read_python(text)]
    return run_commands(text, folder, environment) + run_steps(examples, folder, environment)


def run_commands(text: str, folder: Path, environment: dict[str, str]) -> str:
    """Runs the shell commands of a page in a folder, and returns their output."""
    return run_steps([["bash", "-c", command] for command in read_commands(text)], folder, environment)


def run_steps(steps: Sequence[Sequence[str]], folder: Path, environment: dict[str, str]) -> str:
    """Runs processes that must succeed, and returns their output."""
    outputs = []
    for step in steps:
        process = subprocess.run(step, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, f"{step[-1]}\n{process.stdout}\n{process.stderr}"
        assert "Traceback" not in process.stderr
        outputs.append(process.stdout)
    return "\n".join(outputs)
