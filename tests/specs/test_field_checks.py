"""Invalid values are rejected with their key when the config is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from caption_jax.config import default_config
from caption_jax.errors import ConfigError
from caption_jax.specs import DataSpec, DecodeSpec, RunSpec, as_mapping
from caption_jax.specs.conversion import flatten
from input_pipeline import data_spec
from input_pipeline.resampling import INTERPOLATIONS
from input_pipeline.sources.shapes_dataset.builder import CaptionShapes

NAN, INFINITE = math.nan, math.inf
RATE, FRACTION = "must be in [0, 1)", "must be in [0, 1]"
ONE, ZERO = "must be 1 or more", "or more"
VIT = {"name": "caption_jax.backbones.vit_backbone:ViT", "size": "micro"}

INVALID = [
    ("seed", 2**63, "64-bit integer"),
    ("dtype", "float16", "'auto', 'bfloat16' or 'float32'"),
    ("data.source", "web", "'shapes', 'folder' or 'tfds'"),
    ("data.shapes", "huge", "'full' or 'tiny'"),
    ("data.captions", (1,), "a list of files"),
    ("data.on_error", "go on", "'stop' or 'skip'"),
    ("data.image_size", 0, ONE),
    ("data.resize", "x", "'stretch' or 'crop'"),
    ("data.interpolation", "x", "'bilinear', 'bicubic' or 'area'"),
    ("data.vocabulary_size", 260, "261 or more"),
    ("data.max_length", 2, "3 (<s>, a token and </s>) or more"),
    ("data.captions_per_image", -1, "0 (for all) or more"),
    ("data.batch_size", 0, ONE),
    ("data.eval_batch_size", 0, ONE),
    ("data.workers", -1, "0 (for none) or more"),
    ("data.prefetch", -1, "0 (for none) or more"),
    ("data.split_fractions.val", -0.1, RATE),
    ("data.split_fractions.test", 1.0, RATE),
    ("data.feature_cache.views", 0, ONE),
    ("data.feature_cache.dtype", "int8", "'float16' or 'float32'"),
    ("augment.min_crop_scale", 0.0, "in (0, 1] (1 for no crop)"),
    ("augment.max_aspect", 0.9, "1 (for the original aspect ratio) or more"),
    ("augment.max_aspect", INFINITE, "1 (for the original aspect ratio) or more"),
    ("augment.brightness", 1.1, FRACTION),
    ("augment.contrast", -0.1, FRACTION),
    ("augment.saturation", NAN, FRACTION),
    ("model.ops", "slow", "'fast' or 'reference'"),
    ("model.image_memory", "none", "'grid', 'vector' or 'both'"),
    ("model.vector", "max", "'mean' or 'flatten'"),
    ("model.memory_dropout", 1.0, RATE),
    ("model.encoder.norm_group_size", -1, "0 (for the whole batch) or more"),
    ("model.encoder.norm_momentum", 1.5, FRACTION),
    ("model.encoder.drop_path", 1.5, RATE),
    ("model.decoder.layers", 0, ONE),
    ("model.decoder.width", 0, ONE),
    ("model.decoder.heads", 0, ONE),
    ("model.decoder.feed_forward", 0, ONE),
    ("model.decoder.dropout", 1.0, RATE),
    ("model.decoder.dropout_bits", 32, "8 or 16"),
    ("model.decoder.norm", "mid", "'pre' or 'post'"),
    ("model.decoder.norm_epsilon", 0.0, "above 0"),
    ("model.decoder.activation", "relu", "'gelu' or 'gelu_tanh'"),
    ("model.decoder.positions", "rotary", "'learned' or 'sinusoidal'"),
    ("model.text_encoder.layers", 0, ONE),
    ("model.text_encoder.width", -4, ONE),
    ("model.text_encoder.heads", 0, ONE),
    ("model.text_encoder.feed_forward", 0, ONE),
    ("model.text_encoder.dropout", 1.0, RATE),
    ("model.joint_embedding.width", 0, ONE),
    ("model.joint_embedding.temperature", NAN, "above 0"),
    ("model.joint_embedding.min_temperature", 0.0, "above 0"),
    ("model.context.max_texts", -1, "0 (for no context) or more"),
    ("model.context.form", "text", "'vector' or 'tokens'"),
    ("model.context.dropout", 1.0, RATE),
    ("objective.label_smoothing", 1.0, RATE),
    ("objective.contrastive_weight", INFINITE, "0 (for none) or more"),
    ("optimizer.name", "adamv", "'adamw', 'adam', 'lion', 'sgd' or 'adafactor'"),
    ("optimizer.learning_rate", NAN, ZERO),
    ("optimizer.schedule", "step", "'cosine', 'rsqrt', 'linear' or 'constant'"),
    ("optimizer.warmup_steps", -1, "0 (for none) or more"),
    ("optimizer.final_fraction", 1.5, FRACTION),
    ("optimizer.b1", 1.0, RATE),
    ("optimizer.b2", -0.5, RATE),
    ("optimizer.weight_decay", -0.1, "0 (for none) or more"),
    ("optimizer.clip_norm", -1.0, "0 (for none) or more"),
    ("optimizer.grad_accum_steps", 0, ONE),
    ("optimizer.ema", 1.0, RATE),
    ("train.epochs", 0.0, "above 0"),
    ("train.steps", -1, "0 (for train.epochs) or more"),
    ("train.log_every", 0, ONE),
    ("train.eval_every", -1, "0 (for once per epoch) or more"),
    ("train.checkpoint_every", -1, "0 (for once per epoch) or more"),
    ("train.patience", -1, "0 (for never) or more"),
    ("train.eval_images", -1, "0 (for all) or more"),
    ("train.sample_images", -1, "0 (for none) or more"),
    ("train.packing", "often", "'auto', 'always' or 'never'"),
    ("train.profile.start", -1, ZERO),
    ("train.profile.steps", -1, "0 (for none) or more"),
    ("decode.method", "viterbi", "'greedy', 'beam' or 'sample'"),
    ("decode.max_length", 1, "2 (<s> and a token) or more"),
    ("decode.min_length", -1, "0 (for any) or more"),
    ("decode.at_limit", "stop", "'cut' or 'end'"),
    ("decode.num_beams", 0, ONE),
    ("decode.candidates", 0, ONE),
    ("decode.length_penalty", "none", "'power' or 'gnmt'"),
    ("decode.alpha", 100.0, "in [-10, 10]"),
    ("decode.groups", 0, ONE),
    ("decode.diversity", -0.5, "0 (for none) or more"),
    ("decode.num_samples", 0, ONE),
    ("decode.temperature", 0.0, "above 0"),
    ("decode.top_k", -1, "0 (for all) or more"),
    ("decode.top_p", 0.0, "in (0, 1] (1 for all)"),
    ("decode.seed", 2**63, "64-bit integer"),
    ("decode.rerank_weight", -1.0, "0 (for none) or more"),
    ("decode.immediate_repeats", "never", "'allow' or 'forbid'"),
    ("decode.no_repeat_ngram", -1, "0 (for no such rule) or more"),
    ("decode.repetition_penalty", 0.9, ONE),
    ("decode.banned_words", ("a", ""), "a list of words or phrases"),
    ("decode.banned_endings", (3,), "a list of words or phrases"),
    ("mesh.data", 0, "-1 for all that remain"),
    ("mesh.model", -2, "-1 for all that remain"),
]
# Free strings. An unknown name is an error of the file, the hub or the run in which it is looked up.
FREE = {
    *("init_from", "train.best_metric", "decode.prefix", "data.tokenizer", "data.root", "data.images", "data.context"),
    *("data.split_field", "data.tfds_name", "data.tfds_dir", "data.feature_cache.stage", "data.feature_cache.folder"),
    *(f"data.split_files.{split}" for split in ("train", "val", "test")),
    *(f"model.{part}.weights" for part in ("encoder", "decoder", "text_encoder")),
    "model.encoder.variant",  # checked, with another message
}


def make_config(**changes: Any) -> ConfigDict:
    config = default_config().unlock()
    for key, value in changes.items():  # not `update`, which would convert values of other types
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        with section.ignore_type():
            section[name] = value
    return config


def leaves() -> Iterator[tuple[str, Any]]:
    """Keys and defaults of the numbers and strings of the config."""
    return ((key, value) for key, value in flatten(as_mapping(RunSpec())).items() if not isinstance(value, bool))


@pytest.mark.parametrize(("key", "value", "expected"), INVALID)
def test_values_out_of_range_are_rejected_with_their_key(key, value, expected):
    with pytest.raises(ConfigError) as error:
        RunSpec.from_config(make_config(**{key: value}))
    (message,) = str(error.value).splitlines()
    assert message.startswith(f"config.{key} is {value!r}; it must be ") and expected in message


def test_the_table_is_complete():
    assert {key for key, default in leaves() if isinstance(default, int | float | str)} <= {
        *(key for key, _, _ in INVALID),
        *FREE,
    }


def test_every_number_has_a_range():
    numbers = {key: default for key, default in leaves() if isinstance(default, int | float)}
    assert len(numbers) > 60
    for key, default in numbers.items():  # no exceptions, because a seed must fit into 64 bits
        for absurd in (-(10**30),) if isinstance(default, int) else (-1e30, NAN):
            with pytest.raises(ConfigError, match=re.escape(f"config.{key} is {absurd!r}; it must be")):
                RunSpec.from_config(make_config(**{key: absurd}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.split_fractions.val": 0.5, "data.split_fractions.test": 0.5},
            r"split_fractions must sum to less than 1, .* got val=0\.5 and test=0\.5",
        ),
        ({"model.decoder.heads": 7}, r"model\.decoder\.width=512 must be a multiple of heads=7"),
        ({"model.text_encoder.heads": 3}, r"model\.text_encoder\.width=256 must be a multiple of heads=3"),
        (
            {"model.joint_embedding.temperature": 0.001},
            r"at least config\.model\.joint_embedding\.min_temperature=0\.01",
        ),
        ({"model.encoder": {**VIT, "drop_path": NAN}}, r"model\.encoder\.drop_path is nan; it must be in \[0, 1\)"),
        ({"decode.min_length": 41}, r"decode\.min_length=41 must not exceed config\.decode\.max_length=40"),
        ({"decode.method": "beam", "decode.groups": 2}, r"decode\.groups=2 must divide config\.decode\.num_beams=5"),
        ({"decode.method": "beam", "decode.candidates": 6}, r"decode\.candidates=6 must not exceed .*num_beams=5"),
        (
            {"decode.method": "beam", "decode.num_beams": 6, "decode.groups": 2, "decode.candidates": 3},
            r"decode\.candidates=3 must be 1 or a multiple of config\.decode\.groups=2",
        ),
        (
            {"decode.rerank_weight": 1.0, "objective.contrastive_weight": 1.0},
            r'rerank_weight=1\.0 reranks candidates, but config\.decode\.method="greedy" yields only one',
        ),
        ({"mesh.data": -1, "mesh.model": -1}, r"config\.mesh\.data and config\.mesh\.model are both -1"),
        (
            {"mesh.rules": (("decoder/.*",),)},
            r"config\.mesh\.rules: \('decoder/\.\*',\) is not a \(pattern, axes\) pair",
        ),
        ({"mesh.rules": (("decoder/.*", "data"),)}, r"config\.mesh\.rules: .* is not a \(pattern, axes\) pair"),
        ({"mesh.rules": (("(", ("data",)),)}, r"config\.mesh\.rules: '\(' is not a valid regular expression"),
        ({"optimizer.rules": (".*",)}, r"config\.optimizer\.rules: '\.\*' is not a \(pattern, dictionary\) pair"),
        ({"optimizer.rules": (("(", {}),)}, r"config\.optimizer\.rules: '\(' is not a valid regular expression"),
        ({"optimizer.rules": ((".*", {"lr": NAN}),)}, r"config\.optimizer\.rules: '\.\*' sets lr to nan"),
        ({"optimizer.rules": ((".*", {"rate": 1.0}),)}, r"config\.optimizer\.rules: '\.\*' sets unknown 'rate'"),
    ],
)
def test_incompatible_values_are_rejected_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        RunSpec.from_config(make_config(**changes))
    assert len(str(error.value).splitlines()) == 1 and "config." in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode": 3}, r"config\.decode is 3; it must be a dictionary with the keys method, "),
        ({"evaluators": ["own"]}, r"config\.evaluators is .*; it must be a dictionary of extensions by label"),
        ({"evaluators": {"own": "a:B"}}, r"config\.evaluators\.own is 'a:B'; expected a dictionary"),
        ({"model": {"encoder": "b0"}}, r"config\.model\.encoder is 'b0'; expected a dictionary"),
    ],
)
def test_a_value_instead_of_a_section_is_rejected(values, message):
    with pytest.raises(ConfigError, match=message):
        RunSpec.from_config(values)


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    weight: float


def test_a_required_field_is_reported():
    values = {"evaluators": {"own": {"name": f"{__name__}:WithoutDefault"}}}
    with pytest.raises(
        ConfigError, match=r"config\.evaluators\.own must set weight, because WithoutDefault has no def"
    ):
        RunSpec.from_config(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.workers": 0, "data.prefetch": 0, "data.captions_per_image": 0},
        {"optimizer.learning_rate": 0.0, "optimizer.clip_norm": 0.0, "model.encoder.norm_momentum": 1.0},
        {"mesh.data": 1, "mesh.model": -1},
        {"seed": -1, "decode.alpha": -0.5, "decode.top_p": 0.01},
        {"data.tokenizer": "roberta-base", "data.vocabulary_size": 0},
        {"model.text_encoder.weights": "roberta-base", "model.text_encoder.heads": 3},
        {"decode.method": "greedy", "decode.groups": 2, "decode.candidates": 9},
    ],
)
def test_special_values_are_accepted(changes):
    spec = RunSpec.from_config(make_config(**changes))
    flat = flatten(as_mapping(spec))
    assert {key: flat[key] for key in changes} == changes


def test_settings_may_be_traced_inside_a_program():
    @jax.jit
    def doubled(alpha):
        return 2 * dataclasses.replace(DecodeSpec(), alpha=alpha, temperature=alpha, top_p=alpha).alpha

    assert doubled(0.5) == 1


def test_choices_equal_those_of_the_implementations():
    assert set(data_spec.INTERPOLATIONS) == set(INTERPOLATIONS)
    for shapes in CaptionShapes.builder_configs:
        assert DataSpec(shapes=shapes).shapes == shapes
