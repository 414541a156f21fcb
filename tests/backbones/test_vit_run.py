"""A run whose config selects a ViT: training from the feature cache, captioning and planning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from small_run import box_image, get_config

import caption_jax
from caption_jax.feature_cache.features import cache_key
from caption_jax.parameters.paths import flatten
from caption_jax.planning.plan import Request, plan
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.runs.initial_variables import init_variables, variable_shapes
from caption_jax.runs.workdir import read_description, write_description
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate

FROZEN = r"image_encoder/backbone/(embed|block_0)/.*"
STEPS = 3


def make_vit_config(root: Path | str, **encoder) -> ConfigDict:
    """Returns a config that caches the tokens of the first block and trains the layers after it."""
    config = get_config()
    config.data.root = str(root)
    config.model.encoder = {"name": "caption_jax.backbones.vit_backbone:ViT", "size": "micro", **encoder}
    config.data.feature_cache.update({"stage": "block_0", "dtype": "float32"})
    config.optimizer.rules = ((FROZEN, {"lr": 0.0}), (f"(?!{FROZEN}).*", {"lr": 1.0}))
    config.train.update({"steps": STEPS, "log_every": 1, "eval_every": STEPS, "checkpoint_every": STEPS})
    return config


@pytest.fixture(scope="module")
def experiment(small_images, tmp_path_factory) -> Experiment:
    """An experiment before its first step."""
    config = make_vit_config(small_images, drop_path=0.2)
    return start_experiment(RunSpec.from_config(config), epath.Path(tmp_path_factory.mktemp("vit")))


def test_the_settings_of_the_network_are_stored(experiment, tmp_path):
    write_description(epath.Path(tmp_path), experiment.description)
    stored = json.loads((tmp_path / "model.json").read_text())["backbone"]
    assert stored == {"class_token": True, "gelu": "exact", "norm_epsilon": 1e-6}
    preprocessing = json.loads((tmp_path / "preprocessing.json").read_text())
    assert preprocessing["mean"] == preprocessing["std"] == [127.5] * 3
    settings = {"backbone": {**stored, "class_token": False}}
    assert "class_token" in variable_shapes(read_description(tmp_path))["params"]["image_encoder"]["backbone"]["embed"]
    siglip = replace_model_settings(experiment, settings).description
    assert "class_token" not in variable_shapes(siglip)["params"]["image_encoder"]["backbone"]["embed"]


def replace_model_settings(experiment: Experiment, settings: dict) -> Experiment:
    model_settings = dataclasses.replace(experiment.description.model_settings, **settings)
    return dataclasses.replace(
        experiment, description=dataclasses.replace(experiment.description, model_settings=model_settings)
    )


def get_network_key(experiment: Experiment) -> dict:
    """Returns the fields of the cache key that describe the model, without the weights."""
    return {name: value for name, value in cache_key(experiment, {})["model"].items() if name != "weights"}


def test_the_cache_key_depends_on_the_network_settings_but_not_on_stochastic_depth(experiment, small_images, tmp_path):
    key = get_network_key(experiment)
    assert key["name"] == "caption_jax.backbones.vit_backbone:ViT" and key["size"] == "micro"
    spec = RunSpec.from_config(make_vit_config(small_images))  # without stochastic depth
    assert get_network_key(start_experiment(spec, epath.Path(tmp_path))) == key
    stored = experiment.description.model_settings.backbone
    assert get_network_key(replace_model_settings(experiment, {"backbone": {**stored, "gelu": "tanh"}})) != key


def test_logits_from_cached_tokens_and_from_images_are_equal(experiment):
    model, images = experiment.description.model(), np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    tokens = np.zeros((2, 1, 5), np.int32)

    @jax.jit
    def compute_logits(variables, images):
        cached = model.apply(variables, "block_0", images, method="encode_to_stage")
        return (
            cached,
            model.apply(variables, cached, tokens, start_after="block_0"),
            model.apply(variables, images, tokens),
        )

    cached, from_cached, expected = compute_logits(init_variables(experiment.description), images.astype(np.float32))
    assert cached.shape == (2, 1 + 4 * 4, 32)  # the class token and the patches
    assert not np.allclose(expected[0], expected[1])
    np.testing.assert_allclose(from_cached, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained_workdir(small_images, compile_cache, tmp_path_factory) -> Path:
    """The workdir of a trained run."""
    workdir = tmp_path_factory.mktemp("vit")
    train_and_evaluate(RunSpec.from_config(make_vit_config(small_images, drop_path=0.2)), str(workdir))
    return workdir


@pytest.mark.slow
def test_training_from_cached_tokens_changes_only_later_layers(trained_workdir, experiment):
    description = read_description(trained_workdir)
    before, after = flatten(init_variables(description)), flatten(read_weights(str(trained_workdir), "last").variables)
    assert before.keys() == after.keys()
    changed = {path for path, value in after.items() if np.abs(value - before[path]).max() > 0}
    backbone = "params/image_encoder/backbone"
    assert {f"{backbone}/block_1/attention/qkv/kernel", f"{backbone}/norm/scale"} < changed
    assert not [path for path in changed if "/embed/" in path or "/block_0/" in path]
    (features,) = (trained_workdir / "features").glob("*/*.npy")
    assert np.load(features).shape[-2:] == (1 + 4 * 4, 32)
    stored = json.loads((features.parent / "key.json").read_text())["model"]
    assert get_network_key(experiment).items() < stored.items()


@pytest.mark.slow
def test_the_run_captions_an_image_file(trained_workdir, tmp_path):
    box_image("red").save(tmp_path / "red.png")
    (caption,) = caption_jax.load(trained_workdir).caption([tmp_path / "red.png"])
    assert caption.tokens and caption.text and np.isfinite(caption.log_prob) and caption.log_prob < 0


@pytest.mark.slow
def test_planning_does_not_require_the_devices_of_the_topology(compile_cache, tmp_path):
    config = make_vit_config("nowhere")
    config.mesh.data = -1
    request = Request("cpu:8", ("train", "encoder"), images=1, vocabulary=290)
    result = plan(RunSpec.from_config(config), epath.Path(tmp_path), request)
    assert result["programs"]["train"]["per_image"]["matrix_flops"] > 0
    assert result["programs"]["encoder"]["per_image"]["analytic_matrix_flops"] > 0
