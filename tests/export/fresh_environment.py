"""Virtual environments without this project, in which exported captioners run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import ROOT


def make_environment(folder: Path, *packages: str) -> Path:
    """Creates an environment with the releases of constraints.txt, and returns its Python.

    Skips the test if the packages can neither be downloaded nor found in the cache of pip.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "pip", "install", "--quiet", "--retries=1", "-c", ROOT / "constraints.txt", *packages]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"pip cannot install {', '.join(packages)}: {process.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


def run_captioner(python: Path, folder: Path, images: list[Path]) -> list[str]:
    """Returns the lines that captioner.py prints when an environment runs it."""
    return run_script(python, folder / "captioner.py", *images)


def run_script(python: Path, script: Path, *arguments: Path) -> list[str]:
    """Returns the lines that a script prints when an environment runs it in its folder, without settings of tests."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [python, script, *arguments]
    process = subprocess.run(command, cwd=script.parent, env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def write_photographs(folder: Path, count: int, size: int) -> list[Path]:
    """Writes images of random smooth colours, of the size of the model, so that nothing resizes them."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for index in range(count):
        path = folder / f"{index:02d}.png"
        colours = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(colours).resize((size, size), Image.BICUBIC).save(path)
        paths.append(path)
    return paths
