"""A run with a ViT that its config names: training from the feature cache, captions, a plan. No core file knows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from small_run import get_config, picture, quick_compilation

import caption_jax
from caption_jax.feature_cache.features import cache_key
from caption_jax.parameters.paths import flatten
from caption_jax.planning.plan import Request, plan
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.runs.initial_variables import init_variables, variable_shapes
from caption_jax.runs.workdir import read_description
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate

BELOW = r"image_encoder/backbone/(embed|block_0)/.*"
STEPS = 3


def vit_config(root: Path | str, **encoder) -> ConfigDict:
    """Trains what follows the first block, from its cached tokens."""
    config = get_config()
    config.data.root = str(root)
    config.model.encoder = {"name": "caption_jax.backbones.vit_backbone:ViT", "size": "micro", **encoder}
    config.data.feature_cache.update({"stage": "block_0", "dtype": "float32"})
    config.optimizer.rules = ((BELOW, {"lr": 0.0}), (f"(?!{BELOW}).*", {"lr": 1.0}))
    config.train.update({"steps": STEPS, "log_every": 1, "eval_every": STEPS, "checkpoint_every": STEPS})
    return config


@pytest.fixture(scope="module")
def run(small_images, compile_cache, tmp_path_factory) -> Path:
    """The workdir of a trained one."""
    workdir = tmp_path_factory.mktemp("vit")
    with quick_compilation():
        train_and_evaluate(RunSpec.from_config(vit_config(small_images, drop_path=0.2)), str(workdir))
    return workdir


def test_training_from_cached_tokens_moves_what_follows_them(run):
    description = read_description(run)
    before, after = flatten(init_variables(description)), flatten(read_weights(str(run), "last").variables)
    assert before.keys() == after.keys()
    moved = {path for path, value in after.items() if np.abs(value - before[path]).max() > 0}
    backbone = "params/image_encoder/backbone"
    assert {f"{backbone}/block_1/attention/qkv/kernel", f"{backbone}/norm/scale"} < moved
    assert not [path for path in moved if "/embed/" in path or "/block_0/" in path]
    (features,) = (run / "features").glob("*/*.npy")
    assert np.load(features).shape[-2:] == (1 + 4 * 4, 32)  # the class token and the patches


def test_it_captions_an_image_of_a_file(run, tmp_path):
    picture("red").save(tmp_path / "red.png")
    with quick_compilation():
        (caption,) = caption_jax.load(run).caption([tmp_path / "red.png"])
    assert caption.tokens and caption.text and np.isfinite(caption.log_prob) and caption.log_prob < 0


def test_the_run_keeps_the_settings_of_its_network(run):
    stored = json.loads((run / "model.json").read_text())["backbone"]
    assert stored == {"class_token": True, "gelu": "exact", "norm_epsilon": 1e-6}
    pixels = json.loads((run / "preprocessing.json").read_text())
    assert pixels["mean"] == pixels["std"] == [127.5] * 3
    description = read_description(run)
    settings = dataclasses.replace(description.model_settings, backbone={**stored, "class_token": False})
    siglip = dataclasses.replace(description, model_settings=settings)
    assert "class_token" not in variable_shapes(siglip)["params"]["image_encoder"]["backbone"]["embed"]


def test_cached_tokens_of_other_settings_do_not_fit(run, small_images, tmp_path):
    experiment = start_experiment(RunSpec.from_config(vit_config(small_images)), epath.Path(tmp_path))
    (folder,) = (run / "features").iterdir()
    stored = json.loads((folder / "key.json").read_text())["model"]
    assert stored["name"] == "caption_jax.backbones.vit_backbone:ViT" and stored["size"] == "micro"

    def key(experiment: Experiment) -> dict:
        return {name: value for name, value in cache_key(experiment, {})["model"].items() if name != "weights"}

    assert key(experiment).items() < stored.items()
    settings = experiment.description.model_settings
    settings = dataclasses.replace(settings, backbone={**settings.backbone, "gelu": "tanh"})
    other = dataclasses.replace(experiment.description, model_settings=settings)
    assert key(dataclasses.replace(experiment, description=other)) != key(experiment)


def test_it_is_planned_for_chips_that_are_not_there(compile_cache, tmp_path):
    config = vit_config("nowhere")
    config.mesh.data = -1
    request = Request("cpu:8", ("train", "encoder"), images=1, vocabulary=290)
    with quick_compilation():
        found = plan(RunSpec.from_config(config), epath.Path(tmp_path), request)
    assert found["programs"]["train"]["per_image"]["matrix_flops"] > 0
    assert found["programs"]["encoder"]["per_image"]["analytic_matrix_flops"] > 0
