"""Invalid values in a config are rejected with an error that names their key."""

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
from input_pipeline.limits import Limits
from input_pipeline.resampling import INTERPOLATIONS
from input_pipeline.sources.shapes_dataset.builder import CaptionShapes

NAN, INFINITE = math.nan, math.inf
BELOW_ONE, UP_TO_ONE = "must be in [0, 1)", "must be in [0, 1]"
AT_LEAST_ONE, AT_LEAST_ZERO = "must be 1 or more", "or more"
VIT = {"name": "caption_jax.backbones.vit_backbone:ViT", "size": "micro"}

INVALID = [
    ("seed", 2**63, "64-bit integer"),
    ("dtype", "float16", "'auto', 'bfloat16' or 'float32'"),
    ("data.source", "web", "'shapes', 'folder', 'tfds', 'webdataset', 'parquet', 'prepared' or 'mixture'"),
    ("data.shapes", "huge", "'full' or 'tiny'"),
    ("data.captions", (1,), "a list of files"),
    ("data.on_error", "go on", "'stop' or 'skip'"),
    ("data.image_size", 0, AT_LEAST_ONE),
    ("data.resize", "x", "'stretch' or 'crop'"),
    ("data.interpolation", "x", "'bilinear', 'bicubic' or 'area'"),
    ("data.vocabulary_size", 260, "261 or more"),
    ("data.max_length", 2, "0 (to fit the captions), or 3 (<s>, a token and </s>) or more"),
    ("data.captions_per_image", -1, "0 (for all) or more"),
    ("data.held_out_images", -1, "0 (for none) or more"),
    ("data.shuffle_window", -1, "0 (for all images) or more"),
    ("data.batch_size", 0, AT_LEAST_ONE),
    ("data.eval_batch_size", 0, AT_LEAST_ONE),
    ("data.workers", -1, "0 (for none) or more"),
    ("data.prefetch", -1, "0 (for none) or more"),
    ("data.split_fractions.val", -0.1, BELOW_ONE),
    ("data.split_fractions.test", 1.0, BELOW_ONE),
    ("data.worker_type", "fibres", "'threads' or 'processes'"),
    ("data.outside_files", "ask", "'follow' or 'refuse'"),
    ("data.pixel_cache.use", "auto", "'never' or 'always'"),
    ("data.feature_cache.views", 0, AT_LEAST_ONE),
    ("data.feature_cache.dtype", "int8", "'float16' or 'float32'"),
    *((f"limits.{field.name}", type(field.default)(0), AT_LEAST_ONE) for field in dataclasses.fields(Limits)),
    ("augment.min_crop_scale", 0.0, "in (0, 1] (1 for no crop)"),
    ("augment.max_aspect", 0.9, "1 (for the original aspect ratio) or more"),
    ("augment.max_aspect", INFINITE, "1 (for the original aspect ratio) or more"),
    ("augment.brightness", 1.1, UP_TO_ONE),
    ("augment.contrast", -0.1, UP_TO_ONE),
    ("augment.saturation", NAN, UP_TO_ONE),
    ("model.ops", "slow", "'fast' or 'reference'"),
    ("model.image_memory", "none", "'grid', 'vector' or 'both'"),
    ("model.vector", "max", "'mean' or 'flatten'"),
    ("model.cell_dropout", 1.0, BELOW_ONE),
    ("model.memory_dropout", 1.0, BELOW_ONE),
    ("model.memory_layers", -1, "0 (for none) or more"),
    ("model.encoder.norm_group_size", -1, "0 (for the whole batch) or more"),
    ("model.encoder.norm_momentum", 1.5, UP_TO_ONE),
    ("model.encoder.drop_path", 1.5, BELOW_ONE),
    (
        "model.encoder.fine_stage",
        "head",
        "'', 'stem', 'stage_1', 'stage_2', 'stage_3', 'stage_4', 'stage_5', 'stage_6'",
    ),
    ("model.decoder.layers", 0, AT_LEAST_ONE),
    ("model.decoder.width", 0, AT_LEAST_ONE),
    ("model.decoder.heads", 0, AT_LEAST_ONE),
    ("model.decoder.feed_forward", 0, AT_LEAST_ONE),
    ("model.decoder.dropout", 1.0, BELOW_ONE),
    ("model.decoder.token_dropout", 1.0, BELOW_ONE),
    ("model.decoder.dropout_bits", 32, "8 or 16"),
    ("model.decoder.norm", "mid", "'pre' or 'post'"),
    ("model.decoder.norm_epsilon", 0.0, "above 0"),
    ("model.decoder.activation", "relu", "'gelu' or 'gelu_tanh'"),
    ("model.decoder.positions", "rotary", "'learned' or 'sinusoidal'"),
    ("model.text_encoder.layers", 0, AT_LEAST_ONE),
    ("model.text_encoder.width", -4, AT_LEAST_ONE),
    ("model.text_encoder.heads", 0, AT_LEAST_ONE),
    ("model.text_encoder.feed_forward", 0, AT_LEAST_ONE),
    ("model.text_encoder.dropout", 1.0, BELOW_ONE),
    ("model.joint_embedding.width", 0, AT_LEAST_ONE),
    ("model.joint_embedding.temperature", NAN, "above 0"),
    ("model.joint_embedding.min_temperature", 0.0, "above 0"),
    ("model.context.max_texts", -1, "0 (for no context) or more"),
    ("model.context.form", "text", "'vector' or 'tokens'"),
    ("model.context.dropout", 1.0, BELOW_ONE),
    ("objective.label_smoothing", 1.0, BELOW_ONE),
    ("objective.caption_weight", -0.5, "0 (for none) or more"),
    ("objective.contrastive_weight", INFINITE, "0 (for none) or more"),
    ("optimizer.name", "adamv", "'adamw', 'adam', 'lion', 'sgd' or 'adafactor'"),
    ("optimizer.learning_rate", NAN, AT_LEAST_ZERO),
    ("optimizer.schedule", "step", "'cosine', 'rsqrt', 'linear' or 'constant'"),
    ("optimizer.warmup_steps", -2, "-1 (for a tenth of the steps) or more"),
    ("optimizer.final_fraction", 1.5, UP_TO_ONE),
    ("optimizer.b1", 1.0, BELOW_ONE),
    ("optimizer.b2", -0.5, BELOW_ONE),
    ("optimizer.weight_decay", -0.1, "0 (for none) or more"),
    ("optimizer.clip_norm", -1.0, "0 (for none) or more"),
    ("optimizer.grad_accum_steps", 0, AT_LEAST_ONE),
    ("optimizer.ema", 1.0, "-1 (to fit the run), or in [0, 1) (0 for none)"),
    ("train.epochs", -1.0, "0 (to fit the data) or more"),
    ("train.steps", -1, "0 (for train.epochs) or more"),
    ("train.log_every", -1, "0 (to fit the run) or more"),
    ("train.eval_every", -1, "0 (for once per epoch) or more"),
    ("train.checkpoint_every", -1, "0 (for once per epoch) or more"),
    ("train.kept_models", 1, "2 (the best and the previous best) or more"),
    ("train.patience", -1, "0 (for never) or more"),
    ("train.eval_images", -1, "0 (for all) or more"),
    ("train.sample_images", -1, "0 (for none) or more"),
    ("train.packing", "often", "'auto', 'blocks', 'always' or 'never'"),
    ("train.gradient_reduction", "float16", "'float32' or 'bfloat16'"),
    ("train.non_finite", "ignore", "'stop' or 'skip'"),
    ("train.max_skipped_steps", -1, AT_LEAST_ZERO),
    ("train.watchdog", "on", "'off', 'log' or 'end'"),
    ("train.watchdog_factor", 0.5, "1 or more"),
    ("train.watchdog_seconds", 0.0, "(0, inf)"),
    ("train.block_length", -1, "0 (to fit the captions) or more"),
    ("train.profile.start", -1, AT_LEAST_ZERO),
    ("train.profile.steps", -1, "0 (for none) or more"),
    ("metrics.tokenizer", "words", "'ptb' or 'characters'"),
    ("decode.method", "viterbi", "'greedy', 'beam' or 'sample'"),
    ("decode.max_length", 1, "0 (for data.max_length), or 2 (<s> and a token) or more"),
    ("decode.min_length", -1, "0 (for any) or more"),
    ("decode.at_limit", "stop", "'cut' or 'end'"),
    ("decode.num_beams", 0, AT_LEAST_ONE),
    ("decode.candidates", 0, AT_LEAST_ONE),
    ("decode.length_penalty", "none", "'power' or 'gnmt'"),
    ("decode.alpha", 100.0, "in [-10, 10]"),
    ("decode.groups", 0, AT_LEAST_ONE),
    ("decode.diversity", -0.5, "0 (for none) or more"),
    ("decode.num_samples", 0, AT_LEAST_ONE),
    ("decode.temperature", 0.0, "above 0"),
    ("decode.top_k", -1, "0 (for all) or more"),
    ("decode.top_p", 0.0, "in (0, 1] (1 for all)"),
    ("decode.seed", 2**63, "64-bit integer"),
    ("decode.rerank_weight", -1.0, "0 (for none) or more"),
    ("decode.consensus_weight", -1.0, "0 (for none) or more"),
    ("decode.consensus_metric", "METEOR", "'CIDEr-D', 'BLEU-4' or 'ROUGE-L'"),
    ("decode.ensemble", ("runs/a", ""), "a list of workdirs"),
    ("decode.immediate_repeats", "never", "'allow' or 'forbid'"),
    ("decode.no_repeat_ngram", -1, "0 (for no restriction) or more"),
    ("decode.repetition_penalty", 0.9, AT_LEAST_ONE),
    ("decode.banned_words", ("a", ""), "a list of words or phrases"),
    ("decode.banned_endings", (3,), "a list of words or phrases"),
    ("mesh.data", 0, "-1 for all that remain"),
    ("mesh.model", -2, "-1 for all that remain"),
]
# Strings without a check in the spec. Unknown names are rejected where they are looked up.
UNCHECKED_STRINGS = {
    *("init_from", "train.best_metric", "decode.prefix", "data.tokenizer", "data.root", "data.images", "data.context"),
    *("data.split_field", "data.image_column", "data.caption_column", "data.id_column"),
    *("data.tfds_name", "data.tfds_dir", "data.feature_cache.stage", "data.feature_cache.folder"),
    "data.pixel_cache.folder",
    *(f"data.{key}.{split}" for key in ("split_files", "shards") for split in ("train", "val", "test")),
    *(f"model.{part}.weights" for part in ("encoder", "decoder", "text_encoder")),
    "model.encoder.variant",  # checked with a different message
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


def iterate_defaults() -> Iterator[tuple[str, Any]]:
    """Iterates over the keys and defaults of the config, except Booleans."""
    return ((key, value) for key, value in flatten(as_mapping(RunSpec())).items() if not isinstance(value, bool))


@pytest.mark.parametrize(("key", "value", "expected"), INVALID)
def test_values_out_of_range_are_rejected_with_their_key(key, value, expected):
    with pytest.raises(ConfigError) as error:
        RunSpec.from_config(make_config(**{key: value}))
    (message,) = str(error.value).splitlines()
    assert message.startswith(f"config.{key} is {value!r}; it must be ") and expected in message


def test_invalid_values_are_tested_for_all_checked_keys():
    assert {key for key, default in iterate_defaults() if isinstance(default, int | float | str)} <= {
        *(key for key, _, _ in INVALID),
        *UNCHECKED_STRINGS,
    }


def test_all_numeric_keys_have_a_range():
    numeric_defaults = {key: default for key, default in iterate_defaults() if isinstance(default, int | float)}
    assert len(numeric_defaults) > 60
    for key, default in numeric_defaults.items():  # includes seeds, which must fit into 64 bits
        for value in (-(10**30),) if isinstance(default, int) else (-1e30, NAN):
            with pytest.raises(ConfigError, match=re.escape(f"config.{key} is {value!r}; it must be")):
                RunSpec.from_config(make_config(**{key: value}))


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
            {"decode.consensus_weight": 2.0, "decode.method": "beam", "decode.num_beams": 1},
            r'consensus_weight=2\.0 reranks candidates, but config\.decode\.method="beam" and num_beams=1 yields',
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
        (
            {"optimizer.rules": ((".*", {"rate": 1.0}),)},
            r"config\.optimizer\.rules: '\.\*' sets the unknown key 'rate'",
        ),
    ],
)
def test_incompatible_values_are_rejected_with_a_one_line_message(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        RunSpec.from_config(make_config(**changes))
    assert len(str(error.value).splitlines()) == 1 and "config." in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode": 3}, r"config\.decode is 3; it must be a dictionary with the keys method, "),
        ({"evaluators": ["custom"]}, r"config\.evaluators is .*; it must be a dictionary of extensions by label"),
        ({"evaluators": {"custom": "a:B"}}, r"config\.evaluators\.custom is 'a:B'; expected a dictionary"),
        ({"model": {"encoder": "b0"}}, r"config\.model\.encoder is 'b0'; expected a dictionary"),
    ],
)
def test_a_value_instead_of_a_section_is_rejected(values, message):
    with pytest.raises(ConfigError, match=message):
        RunSpec.from_config(values)


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    weight: float


def test_a_missing_required_field_is_rejected():
    values = {"evaluators": {"custom": {"name": f"{__name__}:WithoutDefault"}}}
    with pytest.raises(
        ConfigError, match=r"config\.evaluators\.custom must set weight, because WithoutDefault has no def"
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


def test_decode_settings_can_be_traced_by_jit():
    @jax.jit
    def double_alpha(alpha):
        return 2 * dataclasses.replace(DecodeSpec(), alpha=alpha, temperature=alpha, top_p=alpha).alpha

    assert double_alpha(0.5) == 1


def test_choices_match_the_implementations():
    assert set(data_spec.INTERPOLATIONS) == set(INTERPOLATIONS)
    for shapes in CaptionShapes.builder_configs:
        assert DataSpec(shapes=shapes).shapes == shapes
