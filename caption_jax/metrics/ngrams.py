"""N-gram counts of a batch of captions, as NumPy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

MAX_ORDER = 4  # BLEU and CIDEr-D use n-grams of one to four words


@dataclasses.dataclass(frozen=True)
class NGramCounts:
    """Counts of n-grams of one order in each caption, in sparse coordinate format, sorted by caption and n-gram.

    Attributes:
        caption: index of the caption.
        ngram: id of the n-gram; all captions of a batch share the same ids.
        count: number of occurrences, at least 1.
        num_ngrams: number of distinct n-grams; ids are in [0, num_ngrams).
        example_start: for each id, the start of one occurrence in `CountedCaptions.words`.
    """

    caption: Int[np.ndarray, " entries"]
    ngram: Int[np.ndarray, " entries"]
    count: Int[np.ndarray, " entries"]
    num_ngrams: int
    example_start: Int[np.ndarray, " ngrams"]


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

    def ngram_text(self, n: int, ngram: int) -> str:
        """Returns the words of an n-gram, joined by spaces."""
        start = self.counts[n - 1].example_start[ngram]
        return " ".join(self.words[start : start + n])


def count_ngrams(captions: Sequence[str]) -> CountedCaptions:
    """Counts the n-grams of tokenized captions, whose words are separated by whitespace."""
    words_per_caption = [caption.split() for caption in captions]
    words = [word for caption_words in words_per_caption for word in caption_words]
    lengths = np.array([len(caption_words) for caption_words in words_per_caption], np.int64)
    vocabulary: dict[str, int] = {}
    word_ids = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], np.int64)
    caption_index = np.repeat(np.arange(len(captions)), lengths)
    counts = []
    starts, ids = np.arange(len(words)), word_ids
    for n in range(1, MAX_ORDER + 1):
        if n > 1:
            # Extend each (n-1)-gram by the next word if that word belongs to the same caption.
            has_next = starts + n - 1 < len(words)
            has_next[has_next] = caption_index[starts[has_next]] == caption_index[starts[has_next] + n - 1]
            starts, ids = starts[has_next], ids[has_next]
            ids = ids * max(1, len(vocabulary)) + word_ids[starts + n - 1]
        # Renumber the ids to keep them small, so that the product above cannot overflow.
        _, first, ids = np.unique(ids, return_index=True, return_inverse=True)
        num_ngrams = len(first)
        base = max(1, num_ngrams)
        keys, count = np.unique(caption_index[starts] * base + ids, return_counts=True)
        counts.append(NGramCounts(keys // base, keys % base, count, num_ngrams, starts[first]))
    return CountedCaptions(lengths, words, tuple(counts))
