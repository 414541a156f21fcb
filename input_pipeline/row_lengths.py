"""Lengths to which packed rows are padded: few, because each is a compiled program, and such that padding is short."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from input_pipeline.block_layout import count_tokens_per_image
from input_pipeline.records import Split

if TYPE_CHECKING:
    from input_pipeline.tokenizer import Vocabulary

_MULTIPLE = 128  # row lengths are multiples of this number of tokens
_LENGTHS = 3  # a program of a small model takes about 100 MB
_MAX_CANDIDATES = 32
_SAMPLED_IMAGES, _SAMPLED_ROWS = 2000, 1000
_DEVIATIONS = 6  # standard deviations by which the longest rows exceed the mean


def _round_up(tokens: float, multiple: int) -> int:
    return multiple * math.ceil(tokens / multiple)


def _choose_multiple(tokens: float) -> int:
    """Returns the multiple of 128 tokens of which at most 32 are in a range of `tokens`."""
    return _round_up(tokens / _MAX_CANDIDATES, _MULTIPLE)


def choose_lengths(tokens_per_image: Int[np.ndarray, " images"], images: int) -> tuple[int, ...]:
    """Returns at most three row lengths, in ascending order, for which rows of random images have the least padding.

    The last one is six standard deviations above the mean, so nearly all rows fit.

    Args:
        tokens_per_image: number of target tokens of images of the training split.
        images: number of images per row.
    """
    rows = np.random.default_rng(0).choice(tokens_per_image, (_SAMPLED_ROWS, images)).sum(axis=1)
    longest = rows.mean() + _DEVIATIONS * rows.std()
    multiple = _choose_multiple(longest - rows.min() + 1)
    last = _round_up(longest, multiple)
    shorter = range(_round_up(rows.min(), multiple), last, multiple)
    choices = [(*lengths, last) for lengths in itertools.combinations(shorter, min(_LENGTHS - 1, len(shorter)))]
    return min(choices, key=lambda lengths: np.asarray(lengths)[np.searchsorted(lengths, rows.clip(max=last))].sum())


def sample_tokens_per_image(
    split: Split, vocabulary: Vocabulary, max_length: int, captions_per_image: int
) -> Int[np.ndarray, " images"]:
    """Returns the number of target tokens per step of random images, each with random captions.

    Args:
        split: the training split.
        vocabulary: encodes captions.
        max_length: maximum number of tokens per caption, including <s> and </s>.
        captions_per_image: captions per image per step; images with fewer captions repeat them.
    """
    rng = np.random.default_rng(0)
    records = [split[int(index)] for index in rng.choice(len(split), min(len(split), _SAMPLED_IMAGES), replace=False)]
    sample = Split(
        split.name,
        [
            dataclasses.replace(record, captions=tuple(rng.permutation(record.captions)[:captions_per_image].tolist()))
            for record in records
        ],
    )
    return count_tokens_per_image(sample, vocabulary, max_length, captions_per_image)


def find_row_length(tokens: int, lengths: Sequence[int], largest: int) -> int:
    """Returns the length for a row: the first of `lengths` with space for its tokens, or else a rounded one.

    Args:
        tokens: number of tokens of the longest row.
        lengths: the lengths of a run, in ascending order.
        largest: number of tokens of a row without packing, which no length exceeds.
    """
    fitting = (length for length in lengths if length >= tokens)
    return min(next(fitting, _round_up(max(tokens, 1), _choose_multiple(largest))), largest)
