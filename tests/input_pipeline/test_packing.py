"""Packed rows contain each token exactly once, with its segment id and position, and no padding between captions."""

from __future__ import annotations

import numpy as np
import pytest

from input_pipeline.packing import pack_captions


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_contain_the_captions_of_readable_images_in_order(rows):
    tokens = np.ones((4, 2, 9), np.int32)
    for number, caption in enumerate(tokens.reshape(-1, 9)):
        length = number % 6  # without the start and end tokens
        caption[: length + 2] = [0, *range(10 * number + 3, 10 * number + 3 + length), 2]
    packed = pack_captions(tokens, np.array([True, True, False, True]), rows)
    per_row = 8 // rows
    for row in range(rows):
        expected = []
        for number in range(per_row * row, per_row * (row + 1)):
            caption = tokens.reshape(-1, 9)[number]
            if number not in (4, 5):
                expected += [
                    (int(caption[position]), int(caption[position + 1]), number - per_row * row + 1, position)
                    for position in range(8)
                    if caption[position + 1] != 1
                ]
        columns = [packed[name][row] for name in ("inputs", "targets", "segment_ids", "positions")]
        assert list(zip(*(column[: len(expected)].tolist() for column in columns), strict=True)) == expected
        assert not columns[2][len(expected) :].any()


def test_packed_rows_have_few_distinct_lengths():
    rng = np.random.default_rng(3)
    lengths = set()
    for _ in range(200):
        tokens = np.ones((64, 5, 23), np.int32)
        tokens[np.arange(23) < rng.integers(2, 23, (64, 5))[..., None]] = 7
        lengths.add(pack_captions(tokens, np.ones(64, bool), 1)["inputs"].shape[1])
    assert len(lengths) < 8 and max(lengths) < 0.65 * 64 * 5 * 22
