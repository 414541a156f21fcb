"""N-gram counts of a batch of captions, as NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

LONGEST = 4  # BLEU and CIDEr-D use n-grams of one to four words


@dataclasses.dataclass(frozen=True)
class NGramCounts:
    """Counts of the n-grams of one length in each caption, as sparse rows ordered by caption, then by n-gram.

    Attributes:
        caption: index of the caption.
        ngram: id of the n-gram; ids are shared by all captions that are counted together.
        count: number of occurrences, at least 1.
        size: number of distinct n-grams; ids are in [0, size).
        first: for each id, the start of one occurrence in `CountedCaptions.words`.
    """

    caption: Int[np.ndarray, " rows"]
    ngram: Int[np.ndarray, " rows"]
    count: Int[np.ndarray, " rows"]
    size: int
    first: Int[np.ndarray, " ngrams"]


@dataclasses.dataclass(frozen=True)
class CountedCaptions:
    """N-gram counts of a batch of captions.

    Attributes:
        lengths: number of words per caption.
        words: the words of all captions, concatenated.
        counts: n-gram counts for n = 1 .. 4.
    """

    lengths: Int[np.ndarray, " captions"]
    words: list[str]
    counts: tuple[NGramCounts, ...]

    def text(self, n: int, ngram: int) -> str:
        """The words of an n-gram, joined by spaces."""
        start = self.counts[n - 1].first[ngram]
        return " ".join(self.words[start : start + n])


def count_ngrams(captions: Sequence[str]) -> CountedCaptions:
    """Counts the n-grams of tokenized captions, whose words are separated by whitespace."""
    split = [caption.split() for caption in captions]
    words = [word for caption in split for word in caption]
    lengths = np.array([len(caption) for caption in split], np.int64)
    vocabulary: dict[str, int] = {}
    word_ids = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], np.int64)
    caption = np.repeat(np.arange(len(split)), lengths)
    counts = []
    starts, ids = np.arange(len(words)), word_ids
    for n in range(1, LONGEST + 1):
        if n > 1:
            # Extend each (n-1)-gram by the next word if that word belongs to the same caption.
            inside = starts + n - 1 < len(words)
            inside[inside] = caption[starts[inside]] == caption[starts[inside] + n - 1]
            starts, ids = starts[inside], ids[inside]
            ids = ids * max(1, len(vocabulary)) + word_ids[starts + n - 1]
        # Renumbering keeps ids small, so the product above cannot overflow.
        _, first, ids = np.unique(ids, return_index=True, return_inverse=True)
        size = len(first)
        rows, count = np.unique(caption[starts] * max(1, size) + ids, return_counts=True)
        counts.append(NGramCounts(rows // max(1, size), rows % max(1, size), count, size, starts[first]))
    return CountedCaptions(lengths, words, tuple(counts))
