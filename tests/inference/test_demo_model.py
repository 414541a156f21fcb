"""The demo model in this package: its size, its card, and captions without a workdir."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import small_run
from small_run import run_main

import caption_jax
from caption_jax.named_models import is_shared_copy, locate_demo, locate_model
from caption_jax.runs.loading import read_model

MAX_BYTES = 12e6


def test_the_demo_is_small_and_its_card_states_data_licence_and_scores():
    folder = Path(locate_demo())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.license_name == "non-commercial-research" and (folder / card.data.license_link).is_file()
    for title in ("Training data", "Evaluation", "Limits", "Licence"):
        assert f"\n## {title}\n" in card.text
    config = json.loads((folder / "config.json").read_text())
    assert config["weights"] == "int8" and "/" not in config["spec"]["data"]["root"]


def test_demo_is_the_name_of_the_model_unless_there_is_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate_model("demo") == locate_demo() and is_shared_copy(locate_demo())
    assert read_model("demo").weights.step == 1026  # checks the hash of each file
    (tmp_path / "demo").mkdir()
    assert locate_model("demo") == "demo"


@pytest.mark.slow
def test_commands_without_a_workdir_use_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_run.box_image().resize((300, 200)).save("photo.png")
    assert run_main("caption", "photo.png") == 0
    output = capsys.readouterr()
    assert output.out == f"photo.png\t{caption_jax.load('demo').caption('photo.png').text}\n"
    assert "demo model" in output.err
    assert run_main("export", "--workdir=demo", "--to=folder", "--out=copy") == 0
    exported = Path("copy/model.safetensors").read_bytes()
    assert exported == (Path(locate_demo()) / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_training_starts_from_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_run.write_images(tmp_path / "photographs")
    command = [sys.executable, "-m", "caption_jax", "train", "--config=folder", "--config.data.root=photographs"]
    command += ["--workdir=run", "--config.init_from=demo", "--config.train.steps=1"]
    command += ["--config.data.split_fractions.val=0"]  # the images have splits
    command += ["--config.data.batch_size=8", "--config.data.eval_batch_size=8"]  # for eight devices
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    trained, demo = (
        read_model(name, dtype="float32").weights.variables["params"]["image_encoder"]["backbone"]
        for name in ("run", "demo")
    )
    jax.tree.map(np.testing.assert_array_equal, trained, demo)  # the frozen encoder has the rounded weights of the demo
