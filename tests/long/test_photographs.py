"""Training on 150 photographs shows its progress in a terminal, and prints few lines before the scores.

python -m pytest -n 0 -m long tests/long/test_photographs.py
"""

from __future__ import annotations

import csv
import os
import random
import sys
from pathlib import Path

import pytest
import terminal_recording
from small_run import ROOT
from terminal_checks import check_output

pytestmark = pytest.mark.long
TEST_VARIABLES = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")  # set by tests/conftest.py
PHOTOGRAPHS = 150


def write_subset(source: Path, folder: Path, count: int, seed: int) -> None:
    """Writes a folder with `images/` and `captions.csv`, with a random sample of the training photographs."""
    names = set(random.Random(seed).sample((source / "train_images.txt").read_text().split(), count))
    (folder / "images").mkdir(parents=True)
    for name in names:
        (folder / "images" / name).symlink_to(source / "images" / name)
    with (source / "captions.csv").open(newline="") as file, (folder / "captions.csv").open("w", newline="") as subset:
        rows = list(csv.DictReader(file))
        writer = csv.DictWriter(subset, ["image", "caption"])
        writer.writeheader()
        writer.writerows(row for row in rows if row["image"] in names)


def test_training_on_photographs_is_never_silent(shared_data, tmp_path, get_option):
    write_subset(shared_data / "flickr8k", tmp_path / "photographs", PHOTOGRAPHS, get_option("seed"))
    arguments = ["--config=configs/folder.py", f"--config.data.root={tmp_path / 'photographs'}", "--workdir=run"]
    for name in ("main.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if name not in TEST_VARIABLES}
    command = [sys.executable, "main.py", *arguments]
    recording = terminal_recording.record(command, cwd=tmp_path, environment=environment)
    text = "\n".join(check_output(recording))
    assert "train       135 images" in text and "Why training ended: " in text
