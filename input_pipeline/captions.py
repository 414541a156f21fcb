"""Captions of a split as token ids, each encoded once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int32

from input_pipeline.records import Split


class CaptionEncoder(Protocol):
    """The part of `tokenizer.Vocabulary` that batches depend on."""

    def encode(self, text: str, max_length: int) -> Int32[np.ndarray, " max_length"]:
        """Returns ids from <s> to </s>, padded to `max_length`."""


class EncodedCaptions:
    """Encodes each caption on first use and caches the ids; encoding every epoch would cost as much as image decoding.

    COCO's 600,000 captions of 40 tokens take 100 MB; memory pages are allocated only as captions are used.
    """

    def __init__(self, split: Split, vocabulary: CaptionEncoder, max_length: int):
        self._split = split
        self._vocabulary = vocabulary
        self._first = np.cumsum([0] + [len(record.captions) for record in split])
        self._ids = np.empty((self._first[-1], max_length), np.int32)
        self._encoded = np.zeros(self._first[-1], bool)

    def __getitem__(self, key: tuple[int, int]) -> Int32[np.ndarray, " max_length"]:
        """The token ids of a caption, by the index of its image in the split and its number within the image."""
        index, number = key
        row = self._first[index] + number
        if not self._encoded[row]:  # a race between threads is harmless: they write the same ids
            self._ids[row] = self._vocabulary.encode(self._split[index].captions[number], self._ids.shape[1])
            self._encoded[row] = True
        return self._ids[row]
