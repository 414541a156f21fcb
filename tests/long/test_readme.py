"""The first command of the README trains a captioner that reproduces most captions, but hardly any from blank images.

python -m pytest -n 0 -m long tests/long/test_readme.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import terminal_recording
from small_run import ROOT
from terminal_checks import check_output

pytestmark = pytest.mark.long
TEST_VARIABLES = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")  # set by tests/conftest.py


def read_exact_match(folder: Path, name: str) -> float:
    """Returns the fraction of captions that equal a reference."""
    return json.loads((folder / "runs" / "shapes" / name).read_text())["metrics"]["exact_match"]


def test_the_first_command_trains_a_captioner_that_uses_the_image(tmp_path):
    line = re.search(r"^python3 -m venv .*--mode=evaluate.*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)[0]
    commands = [shlex.split(part)[1:] for part in line.split(" && ") if "main.py" in part]
    assert len(commands) == 2
    for name in ("main.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name not in TEST_VARIABLES}
    for command in (*commands, [*commands[1], "--images=blank"]):
        recording = terminal_recording.record([sys.executable, *command], cwd=tmp_path, environment=environment)
        check_output(recording)
    assert read_exact_match(tmp_path, "eval_test.json") > 0.95
    assert read_exact_match(tmp_path, "eval_test_blank.json") < 0.05
