"""Captions of random words, with the lengths and the number of words of Flickr8k. Does not import JAX."""

from __future__ import annotations

import numpy as np

from input_pipeline.records import Record, Split
from input_pipeline.tokenizer import Tokenizer, Vocabulary

_WORDS, _CAPTIONS_PER_IMAGE, _LETTERS = 3000, 5, "etaoinshrdlucm"
_MEAN_LENGTH, _LENGTH_STDDEV = 11.8, 3.8  # words per caption of Flickr8k


def make_captions(images: int) -> list[list[str]]:
    """Returns five captions per image, in which frequent words are as common as in text (Zipf's law)."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(_LETTERS), rng.integers(2, 8))) for _ in range(_WORDS)]
    probabilities = 1 / np.arange(3, _WORDS + 3)
    probabilities /= probabilities.sum()
    lengths = np.clip(np.rint(rng.normal(_MEAN_LENGTH, _LENGTH_STDDEV, (images, _CAPTIONS_PER_IMAGE))), 3, 20).astype(
        int
    )
    return [[" ".join(rng.choice(words, length, p=probabilities)) for length in row] for row in lengths]


def make_split(images: int) -> Split:
    """Returns a training split with these captions."""
    return Split("train", [Record(bytes, tuple(texts), index) for index, texts in enumerate(make_captions(images))])


def make_vocabulary(split: Split) -> Vocabulary:
    """Returns a vocabulary of all tokens of a tokenizer trained on the captions."""
    tokenizer = Tokenizer.train(split.captions, 4000)
    return Vocabulary(tokenizer, range(tokenizer.size))
