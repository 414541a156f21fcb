"""Captions of a split as token ids, encoded once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int32

from input_pipeline.records import Split


class EncodesCaptions(Protocol):
    """What batches need of a vocabulary (`tokenizer.Vocabulary` has it)."""

    def encode(self, text: str, max_length: int) -> Int32[np.ndarray, " max_length"]:
        """Returns ids from <s> to </s>, then pads."""


class EncodedCaptions:
    """Encodes each caption when it is first needed and keeps the ids: again each epoch would cost as much as decoding.

    COCO's 600,000 captions of 40 tokens take 100 MB, of which only what was used is ever touched.
    """

    def __init__(self, split: Split, vocabulary: EncodesCaptions, max_length: int):
        self._split = split
        self._vocabulary = vocabulary
        self._first = np.cumsum([0] + [len(record.captions) for record in split])
        self._ids = np.empty((self._first[-1], max_length), np.int32)
        self._known = np.zeros(self._first[-1], bool)

    def __getitem__(self, place: tuple[int, int]) -> Int32[np.ndarray, " max_length"]:
        """The ids of an image's caption, by the image's place in the split and the caption's number."""
        index, number = place
        row = self._first[index] + number
        if not self._known[row]:  # two threads may both do this: they write the same
            self._ids[row] = self._vocabulary.encode(self._split[index].captions[number], self._ids.shape[1])
            self._known[row] = True
        return self._ids[row]
