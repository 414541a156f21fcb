"""Every config resolves to the spec that its golden file shows."""

from __future__ import annotations

import dataclasses

import pytest
from config_goldens import CONFIGS, GOLDENS, golden_path, golden_text

from caption_jax.specs import RunSpec
from caption_jax.specs.conversion import as_lines

REWRITE = "if the change is meant, rewrite the golden files: python -m tests.config_goldens"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_resolves_to_its_golden_spec(name):
    assert golden_text(name).splitlines() == golden_path(name).read_text(encoding="utf-8").splitlines(), REWRITE


def test_every_golden_file_is_of_a_config():
    assert sorted(path.stem for path in GOLDENS.iterdir()) == CONFIGS, REWRITE


def test_a_changed_default_is_one_changed_line():
    spec = RunSpec()
    changed = dataclasses.replace(spec, decode=dataclasses.replace(spec.decode, num_beams=7))
    before, after = as_lines(spec), as_lines(changed)
    assert [pair for pair in zip(before, after, strict=True) if len(set(pair)) > 1] == [
        ("config.decode.num_beams = 5", "config.decode.num_beams = 7")
    ]
