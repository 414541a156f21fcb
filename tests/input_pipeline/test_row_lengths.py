"""Lengths of packed rows: few, with little padding, and sufficient for the rows of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from word_vocabulary import WordVocabulary

from input_pipeline.packing import pack_captions
from input_pipeline.records import Record, Split
from input_pipeline.row_lengths import choose_lengths, find_row_length, sample_tokens_per_image


def draw_tokens(count: int = 5000, seed: int = 0) -> np.ndarray:
    """Returns numbers of tokens like those of five captions per image."""
    return np.random.default_rng(seed).normal(64, 10, count).round().astype(int)


@pytest.mark.parametrize("images", [1, 4, 32, 256, 2048])
def test_nearly_all_rows_fit_in_at_most_three_lengths_with_little_padding(images):
    tokens = draw_tokens()
    lengths = choose_lengths(tokens, images)
    assert 1 <= len(lengths) <= 3 and list(lengths) == sorted(set(lengths))
    rows = np.random.default_rng(1).choice(tokens, (2000, images)).sum(1)
    assert rows.max() <= lengths[-1] and all(length % 128 == 0 for length in lengths)
    chosen = np.array([find_row_length(int(row), lengths, 10**9) for row in rows])
    assert (chosen >= rows).all() and set(chosen.tolist()) <= set(lengths)
    rounded = 128 * np.ceil(rows / 128)  # one program for each multiple of 128
    assert chosen.sum() < rounded.sum() + 0.02 * rows.sum()


def test_three_lengths_are_better_than_any_other_three():
    tokens = draw_tokens(300)
    lengths = choose_lengths(tokens, 32)
    rows = np.random.default_rng(5).choice(tokens, (4000, 32)).sum(1)

    def count_padding(lengths):
        return sum(find_row_length(int(row), lengths, 10**9) - int(row) for row in rows)

    others = [(first, second, lengths[-1]) for first in range(1792, 2304, 128) for second in range(first, 2305, 128)]
    assert count_padding(lengths) <= 1.02 * min(map(count_padding, others))


def test_images_with_equal_captions_have_one_length():
    assert choose_lengths(np.array([30]), 4) == (128,)
    assert choose_lengths(np.array([64]), 4) == (256,)


def test_rows_that_exceed_all_lengths_are_rounded_up_to_at_most_the_length_without_packing():
    assert find_row_length(600, (256, 512), 5000) == 768
    assert find_row_length(600, (256, 512), 620) == 620
    assert find_row_length(300, (256, 512), 400) == 400
    assert find_row_length(0, (), 40) == 40


def test_the_sample_contains_as_many_captions_per_image_as_a_step():
    words = ["a b", "a b c d", "a b c d e f"]
    split = Split("train", [Record(Path(f"{i}.png"), tuple(words), i) for i in range(30)])
    two = sample_tokens_per_image(split, WordVocabulary(), 20, 2)
    assert set(two.tolist()) == {8, 10, 12}  # random pairs of 3, 5 and 7 tokens
    assert set(sample_tokens_per_image(split, WordVocabulary(), 20, 3).tolist()) == {15}
    assert set(sample_tokens_per_image(split, WordVocabulary(), 20, 6).tolist()) == {30}
    assert (sample_tokens_per_image(split, WordVocabulary(), 20, 2) == two).all()


def test_rows_are_padded_to_the_first_length_with_space():
    tokens = np.ones((4, 2, 9), np.int32)
    tokens[..., :6] = 7
    mask = np.ones(4, bool)
    shapes = [pack_captions(tokens, mask, 1, lengths)["inputs"].shape for lengths in ((41, 50), (20, 39), (39, 40))]
    assert shapes == [(1, 41), (1, 64), (1, 40)]
