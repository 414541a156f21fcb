"""Config files: known keys, consistent values and rules that match the model."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import astuple
from pathlib import Path

import jax
import numpy as np
import pytest
from config_goldens import CONFIGS, load_config, load_spec
from flax import traverse_util

from caption_jax.config import default_config, to_config_dict
from caption_jax.feature_cache.features import check_frozen
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.parameters.freezing import frozen_norms, phases
from caption_jax.parameters.rules import match_rules
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import DatasetFacts, ModelSpec, RunSpec, differences, resolve
from caption_jax.specs.resolve import find_contradictions
from caption_jax.training.optimizer import make_optimizer
from input_pipeline.special_tokens import PAD


def compute_shapes(name: str) -> dict:
    """Returns the shapes of all parameters of the full-size model of a config, without compilation."""
    spec = load_spec(name)
    return _compute_shapes(
        spec.model, spec.data.max_length, spec.data.image_size, spec.objective.contrastive_weight > 0
    )


@functools.cache
def _compute_shapes(spec: ModelSpec, length: int, size: int, is_searchable: bool) -> dict:
    has_text_encoder = is_searchable or spec.context.max_texts
    text_encoder = roberta_settings(spec.text_encoder, 5000, length, PAD) if has_text_encoder else None
    model = build_model(spec, 5000, length, text_encoder=text_encoder, joint_embedding=is_searchable)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    tokens = jax.ShapeDtypeStruct((1, 1, length - 1), np.int32)
    return jax.eval_shape(model.init, jax.random.key(0), images, tokens)["params"]


def test_the_documented_configs_exist():
    assert {"shapes", "flickr8k", "flickr8k_search", "flickr8k_context", "coco"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_set_only_known_keys_and_preserve_types(name):
    config, defaults = load_config(name), default_config()
    assert config.is_locked
    changes = {path: value for path, (_, value) in differences(RunSpec(), RunSpec.from_config(config)).items()}
    for path, value in changes.items():
        if path.startswith(("objective.terms.", "evaluators.")):  # checked by the objective or the evaluator
            continue
        default_value = functools.reduce(lambda node, key: node[key], path.split("."), defaults)
        assert isinstance(value, type(default_value)), path
    with pytest.raises(AttributeError):
        config.data.bach_size = 1


def test_settings_for_pods_fill_the_devices_and_unfreeze_the_encoder_after_two_epochs():
    from caption_jax.configs import coco_pod

    for name, setting in coco_pod.SETTINGS.items():
        spec = RunSpec.from_config(coco_pod.get_config(name))
        facts = DatasetFacts(113_287, batch_multiple=setting.devices, device_kind="TPU v5 lite")
        resolved = resolve(spec, facts)
        assert spec.data.batch_size == setting.devices * setting.images and setting.images >= 128
        assert not find_contradictions(resolved, facts), name
        starts = [rule["from_step"] for _, rule in spec.optimizer.rules if "from_step" in rule]
        assert [round(start * spec.data.batch_size / 113_287) for start in starts] == [2]
        assert starts[0] < resolved.train.steps / 2
    assert coco_pod.get_config("v5e-8").optimizer.learning_rate == pytest.approx(2e-3)
    with pytest.raises(ValueError, match="choose one of v5e-8, v5e-32"):
        coco_pod.get_config("v5e-9")


@pytest.mark.parametrize("name", CONFIGS)
def test_rules_match_the_model(name):
    config, params = load_spec(name), compute_shapes(name)
    rules = match_rules(params, config.optimizer.rules)  # raises unless exactly one rule matches each parameter
    trained = [path for path, rule in traverse_util.flatten_dict(rules, sep="/").items() if rule.lr > 0]
    assert any(path.startswith("decoder/") for path in trained)
    is_searchable, has_context = config.objective.contrastive_weight > 0, config.model.context.max_texts > 0
    assert (is_searchable or has_context) == any(path.startswith("text_encoder/") for path in trained)
    assert is_searchable == ("joint_embedding/log_scale" in trained)
    assert has_context == ("context/position" in trained)
    make_optimizer(config.optimizer, params, total_steps=1000)
    steps = [start for start, _ in phases(params, config.optimizer.rules)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name", CONFIGS)
def test_lengths_batch_sizes_and_splits_are_consistent(name):
    config = load_spec(name)
    assert config.decode.max_length <= config.data.max_length
    assert config.data.batch_size % config.optimizer.grad_accum_steps == 0
    group_size = config.model.encoder.norm_group_size
    assert not group_size or config.data.batch_size % group_size == 0
    assert not any(astuple(config.data.split_fractions)) or not any(astuple(config.data.split_files))


@pytest.mark.parametrize("name", ["flickr8k", "folder", "coco"])
def test_a_text_encoder_can_be_enabled_on_the_command_line(name):
    config = load_config(name)
    assert not config.objective.contrastive_weight
    patterns = [pattern for pattern, _ in config.optimizer.rules]
    text_paths = ("text_encoder/dense/kernel", "joint_embedding/log_scale", "context/norm/bias")
    for path in (*text_paths, "image_encoder/pooled/dense/kernel"):
        assert sum(bool(re.fullmatch(pattern, path)) for pattern in patterns) == 1, path


def test_flickr8k_freezes_the_backbone_and_caches_its_features():
    config = load_config("flickr8k")
    ((_, frozen),) = phases(compute_shapes("flickr8k"), config.optimizer.rules)
    assert frozen == {path for path in list_paths("flickr8k") if path.startswith("image_encoder/backbone/")}
    assert config.data.feature_cache.stage == "stage_7"
    assert frozen_norms(frozen)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_stages_are_frozen_in_all_phases(name):
    config = load_config(name)
    check_frozen(compute_shapes(name), RunSpec.from_config(config))
    assert config.data.feature_cache.views == 1 or not RunSpec.from_config(config).augment.is_identity


def test_coco_unfreezes_the_encoder_except_its_batch_norms():
    (_, before), (start, after) = phases(compute_shapes("coco"), load_config("coco").optimizer.rules)
    assert start > 0
    backbone = {path for path in list_paths("coco") if path.startswith("image_encoder/backbone/")}
    assert before == backbone
    assert after == {path for path in backbone if path.endswith(("norm/scale", "norm/bias"))}
    assert len(after) == 2 * 49  # B0 has 49 batch norms


def test_the_roberta_decoder_has_the_dimensions_of_roberta_base_and_a_lower_learning_rate():
    from caption_jax.parameters.paths import flatten
    from caption_jax.pretrained.roberta_decoder import check_shape

    config = load_config("coco_roberta_decoder")
    roberta_base = {
        **{"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12},
        **{"hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "pad_token_id": 1},
    }
    check_shape(roberta_base, config.model.decoder, config.data.max_length)
    params = compute_shapes("coco_roberta_decoder")
    rates = {path: rule.lr for path, rule in flatten(match_rules(params, config.optimizer.rules)).items()}
    for path, rate in rates.items():
        if path.startswith("decoder/"):
            assert rate == (1.0 if "cross_attention" in path else 0.1), path


def list_paths(name: str) -> set[str]:
    """Returns the paths of all parameters of the model of a config."""
    return set(traverse_util.flatten_dict(compute_shapes(name), sep="/"))


def test_the_stored_config_equals_the_original(tmp_path: Path):
    """The stored config, which evaluation and captioning read, is locked, and flags can override its values."""
    from etils import epath

    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.runs.workdir import write_description
    from input_pipeline.images import Preprocessing
    from input_pipeline.tokenizer import Tokenizer, Vocabulary

    config = load_config("flickr8k")
    tokenizer = Tokenizer.train(["a dog", "a dog"], 300)
    model_settings = ModelSettings(5, 22, {"padding": "same", "norm_epsilon": 1e-3})
    write_description(
        epath.Path(tmp_path),
        RunDescription(RunSpec.from_config(config), model_settings, Preprocessing(), Vocabulary(tokenizer, [5])),
    )
    assert read_spec(tmp_path) == RunSpec.from_config(config)
    stored = to_config_dict(read_spec(tmp_path))
    assert stored.is_locked
    assert isinstance(stored.data.captions, tuple) and isinstance(stored.optimizer.rules, tuple)
    assert stored.optimizer.rules == config.optimizer.rules


def test_keys_missing_from_a_stored_config_get_their_defaults(tmp_path: Path):
    values = load_config("shapes").to_dict()
    del values["train"]["patience"], values["mesh"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_spec(tmp_path) == RunSpec.from_config(load_config("shapes"))
