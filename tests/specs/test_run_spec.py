"""Specs have one field per config key, are checked when built from a config, and round-trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from etils import epath

from caption_jax.config import default_config, to_config_dict
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.runs.workdir import read_spec, write_spec
from caption_jax.specs import DatasetFacts, DecodeSpec, RunSpec, as_mapping, build_spec, differences, resolve


@dataclasses.dataclass(frozen=True)
class Repetition:
    """An extension as a user would define it."""

    weight: float = 1.0
    window: int = 3
    words: tuple[str, ...] = ()

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be 1 or more")


NAME = f"{__name__}:Repetition"


def make_spec_with_term(**values) -> RunSpec:
    config = default_config()
    config.objective.terms = {"repetition": {"name": NAME, **values}}
    return RunSpec.from_config(config)


def test_the_default_config_is_the_default_spec():
    assert RunSpec.from_config(default_config()) == RunSpec()
    assert to_config_dict(RunSpec()).to_dict() == default_config().to_dict()


def test_specs_round_trip_through_json_and_can_be_overridden():
    config = default_config()
    config.optimizer.rules = ((r"decoder/.*", {"lr": 0.5}), (r"(?!decoder/).*", {"lr": 0.0, "from_step": 3}))
    config.decode.banned_words = ("a", "b c")
    config.model.encoder.variant = "lite0"
    spec = RunSpec.from_config(config)
    restored = RunSpec.from_config(json.loads(json.dumps(as_mapping(spec))))
    assert restored == spec and restored.optimizer.rules == config.optimizer.rules
    restored = to_config_dict(restored)
    restored.optimizer.learning_rate = 0.5
    assert differences(spec, RunSpec.from_config(restored)) == {"optimizer.learning_rate": (1e-3, 0.5)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 0}, r"config\.data\.batch_size is 0; it must be 1 or more"),
        ({"data.source": "web"}, r"config\.data\.source is 'web'"),
        ({"augment.min_crop_scale": 0.0}, r"augment\.min_crop_scale is 0\.0"),
        ({"model.decoder.heads": 7}, r"width=512 must be a multiple of heads=7"),
        ({"model.encoder.variant": "b9"}, r"config\.model\.encoder.*no EfficientNet variant 'b9'"),
        ({"model.context.max_texts": 2}, r"set config\.data\.context"),
        ({"optimizer.ema": 1.0}, r"optimizer\.ema is 1\.0"),
        ({"train.steps": -1}, r"train\.steps is -1"),
        (
            {"optimizer.grad_accum_steps": 5},
            r"must be a multiple of config\.optimizer\.grad_accum_steps=5: set it to 30",
        ),
        (
            {"objective.contrastive_weight": 1.0, "optimizer.grad_accum_steps": 2},
            r"grad_accum_steps=2 with .*_weight=1\.0",
        ),
        ({"decode.rerank_weight": 1.0}, r"config\.decode\.rerank_weight=1\.0 compares captions with images"),
        ({"decode.method": "viterbi"}, r"config\.decode\.method is 'viterbi'"),
        ({"data.feature_cache.stage": "stage_9"}, r"feature_cache\.stage: unknown stage 'stage_9'.*stage_7"),
        ({"data.feature_cache.stage": "stem", "data.feature_cache.views": 2}, "views is 2, but without augmentation"),
        (
            {"data.feature_cache.stage": "stage_7", "model.encoder.fine_stage": "stage_5"},
            r"feature_cache\.stage='stage_7' comes after .*fine_stage='stage_5'.*set feature_cache.stage to 'stage_5'",
        ),
        ({"dtype": "float16"}, r"config\.dtype is 'float16'"),
    ],
)
def test_invalid_values_are_rejected_with_their_key(changes, message):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        RunSpec.from_config(config)


def test_unknown_keys_and_values_of_the_wrong_type_are_rejected():
    with pytest.raises(ConfigError, match=r"config\.decode has no key 'beam'; did you mean 'num_beams'\?"):
        build_spec(DecodeSpec, {"beam": 3}, "decode")
    with pytest.raises(ConfigError, match=r"config\.decode\.num_beams is '3'; it must be of type int"):
        build_spec(DecodeSpec, {"num_beams": "3"}, "decode")
    assert build_spec(DecodeSpec, {"alpha": 1}, "decode").alpha == 1.0


def test_extensions_are_built_from_their_fields_and_stored_by_name(tmp_path):
    spec = make_spec_with_term(window=5, words=["the", "a"])
    assert spec.objective.terms == {"repetition": Repetition(window=5, words=("the", "a"))}
    write_spec(epath.Path(tmp_path), spec)
    assert read_spec(tmp_path).import_extensions() == spec
    changed = make_spec_with_term(window=6, words=["the", "a"])
    assert differences(spec, changed) == {"objective.terms.repetition.window": (5, 6)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windw": 2}, r"config\.objective\.terms\.repetition has no key 'windw'; did you mean 'window'\?"),
        ({"window": 0}, r"config\.objective\.terms\.repetition.*window is 0"),
        ({"name": "json:JSONDecoder"}, "is not a frozen dataclass"),
        ({"name": "json:Nothing"}, "module json has no attribute 'Nothing'"),
        ({"name": "no_such_module:Nothing"}, "No module named 'no_such_module'"),
        ({"name": "Repetition"}, 'must be an import path, "package.module:Class"'),
        ({"name": ""}, "has no name"),
    ],
)
def test_errors_in_an_extension_contain_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        make_spec_with_term(**values)


@pytest.mark.parametrize(("images", "steps", "every"), [(100, 60, 3), (20, 20, 1), (6_000, 3_740, 187)])
def test_epochs_are_converted_to_steps_of_full_batches(images, steps, every):
    spec = dataclasses.replace(RunSpec(), train=dataclasses.replace(RunSpec().train, epochs=20))
    train = resolve(spec, DatasetFacts(images)).train
    assert (train.steps, train.eval_every, train.checkpoint_every) == (steps, every, every)


def test_explicit_steps_take_precedence_over_epochs():
    explicit = dataclasses.replace(RunSpec().train, steps=7, log_every=1, eval_every=2, checkpoint_every=3)
    assert resolve(dataclasses.replace(RunSpec(), train=explicit), DatasetFacts(1000)).train == explicit


def test_the_first_config_format_is_read_and_formats_of_newer_releases_are_rejected(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seed": 3, "model": {"encoder": {"variant": "lite0"}}, "decode": {"num_beams": 2}}))
    spec = read_spec(tmp_path)
    assert (spec.seed, spec.model.encoder.variant, spec.decode.num_beams) == (3, "lite0", 2)
    assert spec.train == RunSpec().train
    path.write_text(json.dumps({"version": 99, "spec": {}}))
    with pytest.raises(WorkdirError, match=r"config\.json has version 99, written by a newer release"):
        read_spec(tmp_path)
    path.write_text(json.dumps({"version": 2, "spec": {"decode": {"method": "viterbi"}}}))
    with pytest.raises(WorkdirError, match=r"config\.json: config\.decode\.method is 'viterbi'"):
        read_spec(tmp_path)
