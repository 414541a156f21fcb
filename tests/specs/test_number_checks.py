"""Every numeric key rejects numbers that are not finite or absurdly large and values of other types, by its name."""

from __future__ import annotations

import json
import math

import pytest

from caption_jax.errors import ConfigError
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.specs.conversion import flatten

DEFAULTS = as_mapping(RunSpec())
NUMBERS = {key: value for key, value in flatten(DEFAULTS).items() if type(value) in (int, float)}
INVALID = (math.nan, math.inf, -math.inf, 10**60, -(10**60), 1e300, -1e300, "1", None, [1], {"a": 1}, True)
# Keys for which -1 has a meaning.
MAY_BE_NEGATIVE = {
    "seed",
    "decode.seed",
    "decode.alpha",
    "optimizer.warmup_steps",
    "optimizer.ema",
    "mesh.data",
    "mesh.model",
}


def build(key: str, value: object) -> RunSpec:
    config = json.loads(json.dumps(DEFAULTS))
    *sections, name = key.split(".")
    target = config
    for section in sections:
        target = target[section]
    target[name] = value
    return RunSpec.from_config(config)


@pytest.mark.parametrize("key", NUMBERS)
def test_invalid_numbers_are_rejected_with_the_key(key):
    for value in INVALID:
        with pytest.raises(ConfigError) as error:
            build(key, value)
        assert str(error.value).startswith(f"config.{key} is ") and "\n" not in str(error.value), value


@pytest.mark.parametrize("key", NUMBERS)
def test_negative_numbers_and_zero_are_rejected_with_the_key_or_have_a_meaning(key):
    for value in (-1, 0):
        try:
            build(key, value)
        except ConfigError as error:
            assert key.rpartition(".")[2] in str(error) and "\n" not in str(error)
        else:
            assert value == 0 or key in MAY_BE_NEGATIVE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.workers", -1, "config.data.workers is -1; it must be 0 (for none) or more"),
        ("data.workers", 10**6, "config.data.workers is 1000000; it must be at most 1,024 and 0 (for none) or more"),
        ("data.max_length", 1, "config.data.max_length is 1; it must be 0 (to fit the captions), or 3"),
        ("decode.max_length", 1, "config.decode.max_length is 1; it must be 0 (for data.max_length), or 2"),
        ("train.steps", 2**31, "config.train.steps is 2147483648; it must be at most 2,147,483,647 and 0"),
        ("optimizer.learning_rate", math.inf, "config.optimizer.learning_rate is inf; it must be finite and 0 or more"),
    ],
)
def test_messages_name_the_allowed_range(key, value, message):
    with pytest.raises(ConfigError) as error:
        build(key, value)
    assert str(error.value).startswith(message)


LONG = ["x" * 10_000, ["a" * 50] * 10_000, {"a" * 10_000: {"b" * 10_000: 1}}]


@pytest.mark.parametrize("value", LONG, ids=["text", "list", "dictionary"])
@pytest.mark.parametrize(
    "key", ["", "data", "data.source", "train.steps", "optimizer.rules", "model.backbone", "dtype"]
)
def test_long_values_are_shortened_in_messages(key, value):
    with pytest.raises(ConfigError) as error:
        build(key, value)
    assert len(str(error.value)) < 1000
