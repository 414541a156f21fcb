"""Damaged files that describe a run are reported in one line with the file and, where there is one, the key."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged_descriptions import DESCRIPTION_FILES, check_description, damaged_descriptions
from damaged_weights import DAMAGE
from etils import epath
from hypothesis import given, settings
from small_models import small_description

from caption_jax.errors import UserError, WorkdirError
from caption_jax.runs.workdir import read_description, write_description

VALUES = (None, True, -1, 0, 1, 2**40, 10**400, 1.5, math.nan, math.inf, "", "x", "\x00", [], [1, 2], {}, {"a": 1})


@pytest.fixture(scope="module")
def intact_workdir(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    write_description(epath.Path(workdir), small_description())
    read_description(workdir)
    return workdir


@pytest.fixture
def workdir(intact_workdir, tmp_path) -> Path:
    return Path(shutil.copytree(intact_workdir, tmp_path / "run"))


def list_keys(content: Any, prefix: tuple = ()) -> Iterator[tuple]:
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from list_keys(value, (*prefix, key))


def replace(content: dict, keys: tuple, value: Any) -> dict:
    copied = json.loads(json.dumps(content))
    *parents, last = keys
    target = copied
    for key in parents:
        target = target[key]
    target[last] = value
    return copied


def read_error(workdir: Path) -> str:
    """Returns the message of the error, "" if the description is valid. Errors of other types propagate."""
    try:
        description = read_description(workdir)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1000
        return message
    assert description.model_settings.max_length >= 3 and description.preprocessing.size >= 1
    return ""


@pytest.mark.parametrize("name", DESCRIPTION_FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named(workdir, name, kind):
    DAMAGE[kind](workdir / name)
    message = read_error(workdir)
    assert name in message or (kind == "flipped bit" and not message)  # within a string or number


@pytest.mark.parametrize("name", [name for name in DESCRIPTION_FILES if name.endswith(".json")])
@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"', "{}", "[" * 100_000, '{"a": NaN}', "\ufeff{}"])
def test_other_json_is_rejected(workdir, name, content):
    (workdir / name).write_text(content)
    assert name in read_error(workdir)


@pytest.mark.parametrize("name", ["model.json", "preprocessing.json"])
def test_every_value_of_the_wrong_type_or_size_is_rejected_with_its_key(workdir, name):
    content = json.loads((workdir / name).read_text())
    accepted = []
    for keys in list_keys(content):
        for value in VALUES:
            (workdir / name).write_text(json.dumps(replace(content, keys, value)))
            if message := read_error(workdir):
                assert name in message and keys[-1] in message, (keys, value, message)
            else:
                accepted.append((keys[-1], value))
    expected = {"size", "joint_embedding", "text_encoder", "norm_epsilon", "backbone", "pixels"}
    assert {key for key, _ in accepted} <= expected, accepted


@pytest.mark.slow
def test_the_values_of_config_json_are_checked(workdir):
    content = json.loads((workdir / "config.json").read_text())
    for keys in list_keys(content):
        for value in VALUES:
            (workdir / "config.json").write_text(json.dumps(replace(content, keys, value)))
            message = read_error(workdir)
            assert not message or "config.json" in message, (keys, value, message)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_length_without_room_for_a_token_is_rejected(workdir, length):
    content = json.loads((workdir / "model.json").read_text())
    (workdir / "model.json").write_text(json.dumps({**content, "max_length": length}))
    with pytest.raises(WorkdirError, match=rf"model.json is damaged \(max_length is {length}; .*from 3 to"):
        read_description(workdir)


@pytest.mark.parametrize(
    "resolved",
    [
        3,
        [1],
        {"train": 1},
        {"train.steps.x": 1},
        {"no.key": 1},
        {"train.stepz": 1},
        {"train.steps": "5"},
        {"data.max_length": 1},
    ],
)
def test_damaged_fitted_values_are_rejected(workdir, resolved):
    content = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**content, "resolved": resolved}))
    assert "config.json" in read_error(workdir)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vocab.json", lambda v: {**v, "new": 10**6}, "without gaps"),
        ("vocab.json", lambda v: {**v, "new": 5}, "without gaps"),
        ("vocab.json", lambda v: {**v, "new": "5"}, "whole numbers"),
        ("vocabulary.json", lambda v: {"full_ids": [10**6]}, "full_ids has 1000000, but the tokenizer has"),
        ("vocabulary.json", lambda v: {"full_ids": [-3]}, "full_ids has -3"),
        ("vocabulary.json", lambda v: {"full_ids": v["full_ids"][:-1]}, "vocabulary_size is"),
        ("tokenizer_settings.json", lambda v: {**v, "lowercase": "yes"}, "true or false"),
        ("tokenizer_settings.json", lambda v: {**v, "other": True}, "must set"),
    ],
)
def test_inconsistent_tokenizers_are_rejected(workdir, name, change, message):
    path = workdir / "tokenizer" / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert message in read_error(workdir)


@pytest.mark.parametrize("line", ["a", "a b c", "absent tokens", "\x00 \x00", "a  b"])
def test_invalid_merges_are_rejected_with_their_line(workdir, line):
    path = workdir / "tokenizer" / "merges.txt"
    path.write_text(path.read_text() + "\n" + line)
    assert "merges.txt, line" in read_error(workdir)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(damaged_descriptions())
def test_randomly_damaged_files_are_valid_or_rejected_in_one_line(data):
    check_description(data)
