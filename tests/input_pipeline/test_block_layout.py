"""The layout of blocks has space for every batch of a run, with few tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from input_pipeline.block_layout import (
    BlockLayout,
    choose_layout,
    count_extra_blocks,
    count_tokens_per_image,
)
from input_pipeline.image_order import shuffle_epoch
from input_pipeline.packing import pack_blocks
from input_pipeline.records import Record, Split


class WordVocabulary:
    """Encodes each word as one token."""

    def encode_batch(self, texts, max_length):
        tokens = np.ones((len(texts), max_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [0, *(7 for _ in text.split()), 2][:max_length]
            row[: len(ids)] = ids
        return tokens


def test_the_number_of_blocks_is_an_upper_bound_for_all_captions_and_orders():
    rng = np.random.default_rng(0)
    for _ in range(300):
        length, captions = int(rng.integers(4, 20)), int(rng.integers(1, 7))
        lengths = rng.integers(1, length + 1, captions)
        tokens = np.ones((1, captions, length + 1), np.int32)
        tokens[0][np.arange(length + 1) < lengths[:, None] + 1] = 7
        bound = int(count_extra_blocks(lengths.sum(keepdims=True), length)[0])
        packed = pack_blocks(tokens, np.ones(1, bool), 1, BlockLayout(length, extra=bound))
        assert (packed["segment_ids"] > 0).sum() == lengths.sum()
    assert count_extra_blocks(np.array([0, 8, 9, 13, 14, 40]), 8).tolist() == [0, 0, 1, 1, 2, 7]


def test_the_longest_captions_of_an_image_are_counted():
    captions = [("a b c", "a", "a b"), ("a b c d e f g h i",), ()]
    split = Split("train", [Record(Path(f"{i}.png"), texts, i) for i, texts in enumerate(captions)])
    # Targets are the words and </s>; the second image has a truncated caption, which is repeated.
    assert count_tokens_per_image(split, WordVocabulary(), 8, 2).tolist() == [4 + 3, 2 * 7, 2]
    assert count_tokens_per_image(split, WordVocabulary(), 8, 4).tolist() == [4 + 3 + 2 + 4, 4 * 7, 4]


def max_extra(tokens, epochs, images, length, microbatches):
    """Returns the largest number of extra blocks of a row, over all rows that could start at any image."""
    sequence = count_extra_blocks(tokens[np.concatenate(epochs)], length)
    span = (images - 1) * microbatches + 1
    return max(sequence[start : start + span : microbatches].sum() for start in range(len(sequence) - span + 1))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("images", [1, 4, 10])
def test_the_layout_has_space_for_every_row_of_the_run(images, microbatches):
    rng = np.random.default_rng(1)
    tokens = rng.choice([3, 6, 9, 20], p=[0.5, 0.3, 0.15, 0.05], size=37)
    epochs = [shuffle_epoch(37, 0, epoch) for epoch in range(4)]
    layout = choose_layout(tokens, iter(epochs), images, [8], microbatches)
    assert layout == BlockLayout(8, max_extra(tokens, epochs, images, 8, microbatches))
    assert layout.extra > 0


def test_the_layout_with_the_fewest_tokens_is_chosen():
    epochs = [np.arange(100), np.arange(100)[::-1]]
    tokens = np.full(100, 30)
    assert choose_layout(tokens, epochs, 10, [16, 32, 64]) == BlockLayout(32, 0)
    tokens[[3, 4, 50]] = 40  # two of ten images, at most, need another block
    assert choose_layout(tokens, epochs, 10, [32, 64]) == BlockLayout(32, 2)
    tokens[:] = 40
    assert choose_layout(tokens, epochs, 10, [32, 64]) == BlockLayout(32, 10)  # as many tokens as with 64
    assert choose_layout(tokens, epochs, 10, [32, 48, 64]) == BlockLayout(48, 0)
