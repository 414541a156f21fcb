"""Values that are fitted to the data when a run starts, and warnings about values that contradict each other."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from caption_jax.specs import DatasetFacts, RunSpec, replace_values, resolve
from caption_jax.specs.resolve import count_truncated, describe_fit, find_contradictions, use_stored_values
from input_pipeline.errors import ConfigError

REQUESTS = {
    "optimizer.warmup_steps": -1,
    "optimizer.ema": -1.0,
    "data.max_length": 0,
    "decode.max_length": 0,
}
FITTED = replace_values(RunSpec(), REQUESTS)
LENGTHS = np.array([8] * 990 + [20] * 9 + [45])


def facts(images: int, lengths: np.ndarray = LENGTHS, batch_multiple: int = 1) -> DatasetFacts:
    return DatasetFacts(images, lengths, batch_multiple)


def with_values(spec: RunSpec = FITTED, **values: Any) -> RunSpec:
    """Returns a spec with other values, by key with "__" for the period."""
    return replace_values(spec, {key.replace("__", "."): value for key, value in values.items()})


@pytest.mark.parametrize(
    ("images", "steps", "warmup", "ema", "evaluate", "log"),
    [
        (20, 600, 60, 0.9889, 30, 6),  # at least 600 updates, evaluated 20 times
        (135, 600, 60, 0.9889, 30, 6),
        (6_000, 2_244, 224, 0.997, 187, 22),  # 12 epochs, evaluated once per epoch
        (113_287, 42_480, 1_000, 0.9998, 3_540, 50),
    ],
)
def test_the_length_of_a_run_fits_the_number_of_images(images, steps, warmup, ema, evaluate, log):
    spec = resolve(FITTED, facts(images))
    assert spec.train.steps == steps
    assert spec.optimizer.warmup_steps == warmup
    assert spec.optimizer.ema == pytest.approx(ema, abs=5e-5)
    assert (spec.train.eval_every, spec.train.checkpoint_every, spec.train.log_every) == (evaluate, evaluate, log)
    assert not find_contradictions(spec, facts(images))


def test_stated_values_are_not_fitted():
    stated = {
        "train__steps": 700,
        "train__log_every": 9,
        "train__eval_every": 11,
        "train__checkpoint_every": 13,
        "optimizer__warmup_steps": 0,
        "optimizer__ema": 0.0,
        "data__max_length": 30,
        "decode__max_length": 25,
    }
    spec = with_values(**stated)
    assert resolve(spec, facts(6_000)) == spec


def test_stated_epochs_may_be_fewer_than_600_steps():
    assert resolve(with_values(train__epochs=2.0), facts(320)).train.steps == 20


@pytest.mark.parametrize(
    ("images", "configured", "multiple", "expected"),
    [(1_000, 32, 1, 32), (32, 32, 1, 32), (20, 32, 1, 20), (20, 32, 8, 16), (5, 32, 8, 8)],
)
def test_the_batch_is_not_larger_than_the_training_split(images, configured, multiple, expected):
    spec = with_values(data__batch_size=configured)
    assert resolve(spec, facts(images, batch_multiple=multiple)).data.batch_size == expected


def test_a_smaller_batch_remains_a_multiple_of_the_batch_norm_group():
    spec = RunSpec.from_config(
        {"model": {"encoder": {"variant": "b0", "norm_group_size": 16}}, "data": {"batch_size": 64}}
    )
    assert resolve(spec, facts(50)).data.batch_size == 48
    assert resolve(spec, facts(10)).data.batch_size == 10


@pytest.mark.parametrize(
    ("lengths", "expected"), [(LENGTHS, 20), (np.array([9, 300, 300]), 128), (np.array([3, 4, 30]), 30)]
)
def test_the_fitted_length_covers_most_captions(lengths, expected):
    spec = resolve(FITTED, facts(100, lengths))
    assert spec.data.max_length == spec.decode.max_length == expected
    assert count_truncated(spec, facts(100, lengths)) == (lengths > expected).sum()


@pytest.mark.parametrize(("max_length", "lengths", "covering"), [(7, LENGTHS, 20), (0, np.full(10, 300), 300)])
def test_a_length_that_truncates_all_captions_is_rejected(max_length, lengths, covering):
    with pytest.raises(ConfigError, match=f"truncates all .* set it to {covering}, which covers"):
        resolve(with_values(data__max_length=max_length), facts(100, lengths))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train__steps": 48, "optimizer__warmup_steps": 200},
            r"optimizer\.warmup_steps=200: .* only 48 steps",
        ),
        ({"train__steps": 48, "optimizer__ema": 0.997}, r"optimizer\.ema=0\.997: .* about 333 steps.* only 48"),
        ({"train__steps": 48, "train__log_every": 50}, r"train\.log_every=50: the run has only 48 steps"),
        ({"train__steps": 48, "train__eval_every": 49}, r"train\.eval_every=49: the run has only 48 steps"),
        ({"train__steps": 48, "train__checkpoint_every": 50}, r"train\.checkpoint_every=50: the run has only 48"),
    ],
)
def test_values_that_contradict_the_run_are_reported_with_their_key(values, message):
    (text,) = find_contradictions(resolve(with_values(**values), facts(135)), facts(135))
    assert re.match(rf"config\.{message}", text)


def test_truncated_captions_are_counted_and_reported():
    lengths = np.array([8] * 900 + [20] * 100)
    spec = resolve(with_values(data__max_length=12, decode__max_length=12), facts(135, lengths))
    (message,) = find_contradictions(spec, facts(135, lengths))
    assert message.startswith("config.data.max_length=12 truncates 100 of 1,000 training captions; the longest has 20")


def test_batches_that_leave_lanes_of_a_tpu_unused_are_reported():
    def report(batch_size: int, kind: str) -> list[str]:
        on_devices = DatasetFacts(113_287, LENGTHS, batch_multiple=16, device_kind=kind)
        return find_contradictions(resolve(with_values(data__batch_size=batch_size), on_devices), on_devices)

    (message,) = report(256, "TPU v5 lite")
    assert message.startswith("config.data.batch_size=256: each TPU chip processes 16 images at a time")
    assert message.endswith("Set it to a multiple of 2,048")
    assert not report(4096, "TPU v5 lite") and not report(256, "cpu") and not report(256, "NVIDIA H100 80GB HBM3")


def test_a_resumed_run_uses_the_stored_values_even_if_the_data_has_grown():
    configured = with_values(train__epochs=0.0)
    resolved = resolve(configured, facts(20))
    resumed = resolve(use_stored_values(configured, configured, resolved), facts(6_000))
    assert resumed == resolved


def test_values_stated_when_resuming_take_precedence():
    configured, resolved = FITTED, resolve(FITTED, facts(135))
    resumed = use_stored_values(with_values(train__steps=900, train__log_every=7), configured, resolved)
    assert (resumed.train.steps, resumed.train.log_every) == (900, 7)
    assert resumed.train.eval_every == resolved.train.eval_every


def test_other_epochs_than_those_of_the_stored_run_give_another_number_of_steps():
    configured = with_values(train__epochs=5.0)
    resolved = resolve(configured, facts(3_200))
    longer = use_stored_values(with_values(train__epochs=10.0), configured, resolved)
    assert resolve(longer, facts(3_200)).train.steps == 2 * resolved.train.steps
    assert longer.optimizer.warmup_steps == resolved.optimizer.warmup_steps


def test_the_fitted_values_are_listed_by_key():
    text = describe_fit(FITTED, resolve(FITTED, facts(20)))
    for part in ("data.batch_size=20", "train.steps=600", "optimizer.warmup_steps=60", "data.max_length=20"):
        assert part in text
