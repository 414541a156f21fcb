"""BLEU over a corpus (Papineni et al., 2002), with the closest reference length, as COCO's tools compute it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.ngrams import LONGEST, CountedCaptions

# What COCO's tools add to numerators and denominators; without them the scores would differ in the ninth digit.
_TINY, _SMALL = 1e-15, 1e-9


def bleu_statistics(
    captions: CountedCaptions, references: int, image_of: Int[np.ndarray, " captions"]
) -> Int[np.ndarray, "images 10"]:
    """What BLEU needs to know of each image; a corpus is the sum over its images.

    Args:
        captions: the references, then one hypothesis for each image in order.
        references: how many of the captions are references.
        image_of: index of each caption's image; those of the references ascend.

    Returns:
        Columns: length of the hypothesis, length of the reference closest to it (the shorter of two as close), the
        number of n-grams in the hypothesis for n = 1 .. 4, and how many of them occur in a reference (each at most as
        often as in one reference).
    """
    lengths = captions.lengths[references:]
    statistics = np.zeros((len(lengths), 2 + 2 * LONGEST), np.int64)
    statistics[:, 0] = lengths
    statistics[:, 1] = _closest_lengths(captions.lengths[:references], image_of[:references], lengths)
    for n in range(1, LONGEST + 1):
        statistics[:, 1 + n] = np.maximum(0, lengths - n + 1)
        statistics[:, 1 + LONGEST + n] = _matches(captions, n, references, image_of)
    return statistics


def bleu(statistics: Float[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch 4"]:
    """BLEU-1 .. BLEU-4 from (sums of) `bleu_statistics`."""
    length, reference_length = statistics[..., :1].astype(float), statistics[..., 1:2].astype(float)
    possible, correct = statistics[..., 2 : 2 + LONGEST], statistics[..., 2 + LONGEST :]
    precision = np.cumprod((correct + _TINY) / (possible + _SMALL), axis=-1)
    scores = precision ** (1 / np.arange(1, LONGEST + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    with np.errstate(over="ignore", divide="ignore"):
        brevity_penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return scores * brevity_penalty


def _closest_lengths(
    reference_lengths: Int[np.ndarray, " references"],
    image_of: Int[np.ndarray, " references"],
    lengths: Int[np.ndarray, " images"],
) -> Int[np.ndarray, " images"]:
    distance = np.abs(reference_lengths - lengths[image_of])
    order = np.lexsort((reference_lengths, distance, image_of))
    first_of_image = np.searchsorted(image_of[order], np.arange(len(lengths)))
    return reference_lengths[order][first_of_image]


def _matches(
    captions: CountedCaptions, n: int, references: int, image_of: Int[np.ndarray, " captions"]
) -> Int[np.ndarray, " images"]:
    counts = captions.counts[n - 1]
    key = image_of[counts.caption] * max(1, counts.size) + counts.ngram
    is_reference = counts.caption < references
    # The largest count of each n-gram in any one reference of the image.
    order = np.lexsort((counts.count[is_reference], key[is_reference]))
    reference_key, reference_count = key[is_reference][order], counts.count[is_reference][order]
    last = np.append(reference_key[1:] != reference_key[:-1], True) if len(reference_key) else np.zeros(0, bool)
    reference_key, reference_count = reference_key[last], reference_count[last]
    hypothesis_key, hypothesis_count = key[~is_reference], counts.count[~is_reference]
    matched, place = find(reference_key, hypothesis_key)
    clipped = np.minimum(hypothesis_count[matched], reference_count[place])
    images = image_of[counts.caption[~is_reference]][matched]
    return np.bincount(images, clipped, len(image_of) - references).astype(np.int64)


def find(
    ordered: Int[np.ndarray, " keys"], wanted: Int[np.ndarray, " wanted"]
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Indices of the `wanted` that are among the `ordered` keys, and their places there."""
    if not len(ordered):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    found = np.flatnonzero(ordered[place] == wanted)
    return found, place[found]
