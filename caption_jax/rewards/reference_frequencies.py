"""Document frequencies of the n-grams of references, counted on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

from caption_jax.metrics.ngrams import MAX_ORDER, CountedCaptions
from caption_jax.rewards.frequency_table import FrequencyTable, build_frequency_table
from caption_jax.rewards.word_keys import TextHash, extend, has_collision

_MAX_SEEDS = 8  # of the hash, until no two n-grams have the same key; the first one nearly always suffices


class ReferenceFrequencies(NamedTuple):
    """Document frequencies of references, and the hash by which their n-grams are looked up.

    Attributes:
        seed: seed of the `TextHash`, for which no two n-grams of the references have the same key.
        word_keys: keys of the words of all references, in order.
        table: the document frequencies.
    """

    seed: int
    word_keys: UInt32[np.ndarray, "words 2"]
    table: FrequencyTable


def count_references(captions: CountedCaptions, captions_per_image: Sequence[int]) -> ReferenceFrequencies:
    """Counts the images whose references contain each n-gram.

    Args:
        captions: the references of all images, in order.
        captions_per_image: number of references of each image.
    """
    for seed in range(_MAX_SEEDS):
        word_keys = _compute_word_keys(captions.words, TextHash(seed))
        ngram_keys = np.concatenate([_compute_ngram_keys(captions, word_keys, n) for n in range(1, MAX_ORDER + 1)])
        if not has_collision(ngram_keys):
            break
    else:
        raise AssertionError(f"{_MAX_SEEDS} hashes of n-grams have collisions")
    image = np.repeat(np.arange(len(captions_per_image)), captions_per_image)
    frequencies = [_count_images(captions, n, image) for n in range(1, MAX_ORDER + 1)]
    table = build_frequency_table(ngram_keys, np.concatenate(frequencies), len(captions_per_image))
    return ReferenceFrequencies(seed, word_keys, table)


def _compute_word_keys(words: Sequence[str], text_hash: TextHash) -> UInt32[np.ndarray, "words 2"]:
    index: dict[str, int] = {}
    ids = np.array([index.setdefault(word, len(index)) for word in words], np.int64)
    return text_hash.compute_keys(index)[ids]


def _compute_ngram_keys(
    captions: CountedCaptions, word_keys: UInt32[np.ndarray, "words 2"], n: int
) -> UInt32[np.ndarray, "ngrams 2"]:
    """Returns the keys of the distinct n-grams of one order."""
    starts = captions.counts[n - 1].example_start
    keys = word_keys[starts]
    for offset in range(1, n):
        keys = extend(keys, word_keys[starts + offset])
    return keys


def _count_images(captions: CountedCaptions, n: int, image: Int[np.ndarray, " captions"]) -> Int[np.ndarray, " ngrams"]:
    """Counts the images whose references contain each n-gram of one order."""
    counts = captions.counts[n - 1]
    base = max(1, counts.num_ngrams)
    pairs = np.unique(image[counts.caption] * base + counts.ngram)
    return np.bincount(pairs % base, minlength=counts.num_ngrams)
