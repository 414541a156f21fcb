"""Diversity of captions: distinct n-grams, novelty and function-word endings."""

from __future__ import annotations

import pytest

from caption_jax.metrics import diversity


def test_metrics_match_manual_counts():
    captions = {1: "A dog runs.", 2: "a dog runs", 3: "a cat sits on a", 4: ""}
    assert diversity(captions, training_captions=["A dog runs!", "two cats"]) == {
        "distinct-1": 6 / 11,  # a dog runs cat sits on
        "distinct-2": 6 / 8,  # a dog, dog runs, a cat, cat sits, sits on, on a
        "vocabulary": 6.0,
        "unique": 3 / 4,
        "most_common": 2 / 4,
        "novel": 2 / 4,
        "mean_length": 11 / 4,
        "function_word_ending": 1 / 4,
    }


def test_novelty_requires_training_captions():
    assert "novel" not in diversity({1: "a dog"})


def test_empty_captions_score_zero_and_no_captions_are_rejected():
    assert diversity({1: "", 2: "."})["distinct-1"] == 0
    with pytest.raises(ValueError, match="no captions"):
        diversity({})


@pytest.mark.parametrize("ending", ["with", "of the", "next to a", "and"])
def test_function_word_endings_are_counted(ending):
    assert diversity({1: f"a man riding {ending}."})["function_word_ending"] == 1
    assert diversity({1: f"{ending} a man riding."})["function_word_ending"] == 0
