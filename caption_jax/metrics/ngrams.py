"""Counts of n-grams for many captions at once, as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

LONGEST = 4  # BLEU and CIDEr-D look at n-grams of one to four words


@dataclasses.dataclass(frozen=True)
class NGramCounts:
    """How often each n-gram of one length occurs in each caption; rows are ordered by caption, then n-gram.

    Attributes:
        caption: index of the caption.
        ngram: id of the n-gram; equal n-grams have equal ids in all captions counted together.
        count: at least 1.
        size: number of different n-grams; ids are below it.
        first: for each id, where in `CountedCaptions.words` an n-gram with it begins.
    """

    caption: Int[np.ndarray, " rows"]
    ngram: Int[np.ndarray, " rows"]
    count: Int[np.ndarray, " rows"]
    size: int
    first: Int[np.ndarray, " ngrams"]


@dataclasses.dataclass(frozen=True)
class CountedCaptions:
    """Captions as counts.

    Attributes:
        lengths: words of each caption.
        words: all words, caption after caption.
        counts: for n = 1 .. 4.
    """

    lengths: Int[np.ndarray, " captions"]
    words: list[str]
    counts: tuple[NGramCounts, ...]

    def text(self, n: int, ngram: int) -> str:
        """The words of an n-gram, joined by spaces."""
        start = self.counts[n - 1].first[ngram]
        return " ".join(self.words[start : start + n])


def count_ngrams(captions: Sequence[str]) -> CountedCaptions:
    """Counts the n-grams of tokenized captions (words split at white space)."""
    split = [caption.split() for caption in captions]
    words = [word for caption in split for word in caption]
    lengths = np.array([len(caption) for caption in split], np.int64)
    numbers: dict[str, int] = {}
    word_ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    owner = np.repeat(np.arange(len(split)), lengths)
    counts = []
    starts, ids = np.arange(len(words)), word_ids
    for n in range(1, LONGEST + 1):
        if n > 1:
            # An (n-1)-gram grows by the word after it where that word is in the same caption.
            inside = starts + n - 1 < len(words)
            inside[inside] = owner[starts[inside]] == owner[starts[inside] + n - 1]
            starts, ids = starts[inside], ids[inside]
            ids = ids * max(1, len(numbers)) + word_ids[starts + n - 1]
        # Ids stay small, so that the product above cannot overflow.
        _, first, ids = np.unique(ids, return_index=True, return_inverse=True)
        size = len(first)
        rows, count = np.unique(owner[starts] * max(1, size) + ids, return_counts=True)
        counts.append(NGramCounts(rows // max(1, size), rows % max(1, size), count, size, starts[first]))
    return CountedCaptions(lengths, words, tuple(counts))
