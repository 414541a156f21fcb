"""Captions of a split as token ids, each encoded once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Int32

from input_pipeline.records import Split


class CaptionEncoder(Protocol):
    """The interface of `tokenizer.Vocabulary` that batches use."""

    def encode(self, text: str, max_length: int) -> Int32[np.ndarray, " max_length"]:
        """Returns ids from <s> to </s>, padded to `max_length`."""


class EncodedCaptions:
    """Encodes captions on first use and caches the ids; encoding in every epoch would cost as much as image decoding.

    COCO's 600,000 captions of 40 tokens take 100 MB; memory pages are allocated as captions are used.
    """

    def __init__(self, split: Split, vocabulary: CaptionEncoder, max_length: int):
        self._split = split
        self._vocabulary = vocabulary
        self._first_rows = np.cumsum([0] + [len(record.captions) for record in split])
        self._ids = np.empty((self._first_rows[-1], max_length), np.int32)
        self._is_encoded = np.zeros(self._first_rows[-1], bool)

    def __getitem__(self, key: tuple[int, int]) -> Int32[np.ndarray, " max_length"]:
        """Returns the token ids of a caption.

        Args:
            key: index of the image in the split, and index of the caption within the image.
        """
        image_index, caption_index = key
        row = self._first_rows[image_index] + caption_index
        if not self._is_encoded[row]:  # a race between threads is harmless, because they write the same ids
            caption = self._split[image_index].captions[caption_index]
            self._ids[row] = self._vocabulary.encode(caption, self._ids.shape[1])
            self._is_encoded[row] = True
        return self._ids[row]
