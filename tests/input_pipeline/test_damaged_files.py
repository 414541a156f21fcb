"""Shorter versions of the tests in `tests/long/test_fuzz.py`, with fixed examples."""

from __future__ import annotations

import json

import pytest
from damaged_files import (
    CAPTION_FILES,
    IMAGE_FORMATS,
    PLACEHOLDERS,
    check_captions,
    check_image,
    check_index,
    check_results,
    damaged_captions,
    damaged_images,
    damaged_indexes,
    dump_json,
    encode_image,
    iterate_mutants,
)
from hypothesis import given, settings
from image_fuzzing import MAX_MEMORY_MB, fuzz_in_child


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_intact_images_are_read(image_format):
    assert check_image(encode_image(image_format, "RGB"))


@pytest.mark.parametrize("name", sorted(CAPTION_FILES))
def test_intact_caption_files_are_read(name):
    content = CAPTION_FILES[name]
    if name.endswith(".jsonl"):
        content = "\n".join(map(json.dumps, content))
    assert check_captions((content if isinstance(content, str) else json.dumps(content)).encode())


def test_damaged_images_take_little_time_and_memory(tmp_path):
    result = fuzz_in_child(2000, 12345, tmp_path / "last")
    assert 100 < result.readable < 1900
    assert result.slowest < 5 and result.memory_mb < MAX_MEMORY_MB and len(result.longest_reason) < 200


TEXTS = ("", "\x00", "\ud800", *PLACEHOLDERS)
WRONG_VALUES = (None, True, 0, -7, 3.5, 10**20, float("nan"), *TEXTS, [], [7], [[]], {}, {"a": None})


@pytest.mark.parametrize("name", [name for name, content in CAPTION_FILES.items() if not isinstance(content, str)])
def test_every_json_value_can_have_any_type(name):
    """Replaces each value in a caption file, one at a time, by values of all types."""
    is_lines = name.endswith(".jsonl")
    readable = []
    for mutant in iterate_mutants(CAPTION_FILES[name], WRONG_VALUES):
        lines = mutant if is_lines and isinstance(mutant, list) else [mutant]
        data = "\n".join(map(dump_json, lines)).encode("utf-8", "surrogatepass")
        readable.append(check_captions(data))
        check_results(data)
    assert len(readable) > 200 and set(readable) == {True, False}


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged_images())
def test_damaged_images_are_read_or_rejected(data):
    check_image(data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged_captions())
def test_damaged_caption_files_are_read_or_rejected(data):
    check_captions(data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged_captions())
def test_damaged_results_are_read_and_scored_or_rejected(data):
    check_results(data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged_indexes())
def test_damaged_indexes_are_read_or_rejected(files):
    check_index(files)
