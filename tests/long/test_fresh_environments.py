"""The package works in new virtual environments outside the checkout, with and without the train extra.

python -m pytest -n 0 -m long tests/long/test_fresh_environments.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT

pytestmark = pytest.mark.long
TEST_VARIABLES = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "PYTHONPATH", "XLA_FLAGS")  # set by tests/conftest.py


def install(folder: Path, requirement: str) -> Path:
    """Installs a copy of the tracked files in a new environment.

    Args:
        folder: folder of the environment and of the copy.
        requirement: "." or ".[train]".

    Returns:
        The folder with the commands of the environment.
    """
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0")[:-1]:
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    commands = folder / "environment" / "bin"
    pip = [commands / "pip", "install", "--quiet", "-c", "constraints.txt", requirement]
    subprocess.run(pip, cwd=folder / "copy", check=True)
    shutil.rmtree(folder / "copy")
    return commands


def run(command: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in TEST_VARIABLES}
    process = [command, *map(str, arguments)]
    return subprocess.run(process, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_base_installation_captions_and_scores(small_workdir, small_images, tmp_path):
    commands = install(tmp_path, ".")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    image = small_images / "images" / "00.png"
    for command in ([commands / "caption-jax"], [commands / "python", "-m", "caption_jax"]):
        process = run(*command, "caption", f"--workdir={small_workdir}", image, cwd=folder)
        assert process.returncode == 0 and "box" in process.stdout, process.stderr
    results = [{"image_id": f"{number:02d}.png", "caption": "a red box"} for number in range(12)]
    (folder / "results.json").write_text(json.dumps(results))
    process = run(commands / "caption-jax", "score", small_images / "captions.csv", "results.json", cwd=folder)
    assert process.returncode == 0 and "12 images" in process.stdout, process.stderr
    process = run(commands / "caption-jax", "train", "--config=shapes", cwd=folder)
    (line,) = process.stderr.splitlines()
    assert process.returncode == 1 and "pip install 'caption-jax[train]', or '.[train]' in a checkout" in line


def test_the_train_extra_trains_a_packaged_config(tmp_path):
    commands = install(tmp_path, ".[train]")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    process = run(commands / "caption-jax", "train", "--config=shapes", "--config.train.steps=20", cwd=folder)
    assert process.returncode == 0, process.stderr
    assert (folder / "runs" / "shapes" / "report_val.html").is_file()
    process = run(commands / "caption-jax", "evaluate", "--workdir=runs/shapes", "--split=test", cwd=folder)
    assert process.returncode == 0 and "CIDEr-D" in process.stdout, process.stderr
