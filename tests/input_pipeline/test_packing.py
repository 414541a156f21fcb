"""Packed rows contain each token exactly once, with its segment id and position, and no padding between captions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from input_pipeline.block_layout import BlockLayout
from input_pipeline.errors import DataError
from input_pipeline.packing import pack_blocks, pack_captions


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


def make_captions(lengths: list[list[int]], max_length: int = 9) -> np.ndarray:
    """Returns captions with distinct tokens. `lengths` are numbers of targets, 0 for an image's missing caption."""
    tokens = np.ones((len(lengths), len(lengths[0]), max_length), np.int32)
    token = 3
    for image, caption in np.ndindex(tokens.shape[:2]):
        if count := lengths[image][caption]:
            tokens[image, caption, : count + 1] = [0, *range(token, token + count - 1), 2]
            token += count
    return tokens


def unpack(packed: dict[str, np.ndarray], images: int, captions: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Returns the (input, target) pairs of each caption of each image, in the order of their positions."""
    rows = packed["inputs"].shape[0]
    result = {}
    for row in range(rows):
        arrays = (packed[name][row].reshape(-1) for name in ("segment_ids", "positions", "inputs", "targets"))
        for segment, position, token, target in zip(*arrays, strict=True):
            if segment:
                image, caption = divmod(int(segment) - 1, captions)
                pairs = result.setdefault((row * (images // rows) + image, caption), [])
                assert position == len(pairs)
                pairs.append((int(token), int(target)))
    return result


@pytest.mark.parametrize("rows", [1, 2])
def test_blocks_contain_each_token_once_and_the_captions_of_one_image(rows):
    tokens = make_captions([[5, 5, 5], [2, 3, 1], [8, 8, 8], [0, 0, 4]])
    mask = np.array([True, True, True, True])
    packed = pack_blocks(tokens, mask, rows, BlockLayout(8, extra=4))
    assert packed["inputs"].shape == (rows, 4 // rows + 4, 8)
    expected = {
        (image, caption): [(int(a), int(b)) for a, b in itertools.pairwise(tokens[image, caption]) if b != 1]
        for image, caption in np.ndindex(4, 3)
        if (tokens[image, caption] != 1).any()
    }
    assert unpack(packed, 4, 3) == expected
    images = [
        {(int(segment) - 1) // 3 for segment in block if segment} for row in packed["segment_ids"] for block in row
    ]
    assert all(len(block) <= 1 for block in images)
    if rows == 1:  # the first blocks are those of the images, in order
        assert images == [{0}, {1}, {2}, {3}, {0}, {0}, {2}, {2}]


def test_a_caption_is_in_the_first_block_with_space():
    packed = pack_blocks(make_captions([[3, 7, 5]]), np.ones(1, bool), 1, BlockLayout(8, extra=1))
    np.testing.assert_array_equal(packed["segment_ids"][0], [[1, 1, 1, 3, 3, 3, 3, 3], [2] * 7 + [0]])
    assert packed["positions"][0, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_unreadable_images_have_empty_blocks():
    tokens = make_captions([[8, 8], [8, 8], [1, 1]])
    packed = pack_blocks(tokens, np.array([True, False, True]), 1, BlockLayout(8, extra=1))
    assert (packed["segment_ids"][0] > 0).sum(1).tolist() == [8, 0, 2, 8]
    assert not pack_blocks(tokens, np.zeros(3, bool), 1, BlockLayout(8, extra=0))["segment_ids"].any()


def test_the_rows_of_a_microbatch_belong_to_its_images():
    lengths = [[1 + image % 7, 8] for image in range(12)]
    tokens, mask, layout = make_captions(lengths), np.ones(12, bool), BlockLayout(8, extra=3)
    packed = pack_blocks(tokens, mask, 2, layout, microbatches=2)
    for microbatch in range(2):
        expected = pack_blocks(tokens[microbatch::2], mask[microbatch::2], 2, layout)
        for name, array in expected.items():
            np.testing.assert_array_equal(packed[name][microbatch::2], array, err_msg=name)


def test_captions_that_do_not_fit_raise_an_error_with_a_remedy():
    tokens, mask = make_captions([[8, 8], [8, 8]]), np.ones(2, bool)
    with pytest.raises(DataError, match=r"2 extra blocks of 8 tokens per device, but 1 .* config\.train\.packing"):
        pack_blocks(tokens, mask, 1, BlockLayout(8, extra=1))
    with pytest.raises(DataError, match="a caption of 8 tokens does not fit in a block of 7 tokens"):
        pack_blocks(tokens, mask, 1, BlockLayout(7, extra=9))
