"""Corpus BLEU (Papineni et al., 2002) with the closest reference length, matching COCO's tools."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Real

from caption_jax.metrics.ngrams import MAX_ORDER, CountedCaptions

# COCO's tools add these to numerators and denominators. Without them, scores would differ in the ninth digit.
_TINY, _SMALL = 1e-15, 1e-9


def bleu_statistics(
    captions: CountedCaptions, num_references: int, image_index: Int[np.ndarray, " captions"]
) -> Int[np.ndarray, "images 10"]:
    """Computes BLEU statistics per image. The statistics of a corpus are their sum.

    Args:
        captions: all references, followed by one hypothesis per image.
        num_references: number of leading captions that are references.
        image_index: image index of each caption, in ascending order for the references.

    Returns:
        An array with the columns: hypothesis length; closest reference length (the shorter one in a tie); number of
        n-grams in the hypothesis for n = 1 .. 4; number of matched n-grams for n = 1 .. 4, clipped to the maximum
        count in any single reference.
    """
    lengths = captions.lengths[num_references:]
    statistics = np.zeros((len(lengths), 2 + 2 * MAX_ORDER), np.int64)
    statistics[:, 0] = lengths
    statistics[:, 1] = _find_closest_lengths(captions.lengths[:num_references], image_index[:num_references], lengths)
    for n in range(1, MAX_ORDER + 1):
        statistics[:, 1 + n] = np.maximum(0, lengths - n + 1)
        statistics[:, 1 + MAX_ORDER + n] = _count_matches(captions, n, num_references, image_index)
    return statistics


def bleu(statistics: Real[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch 4"]:
    """Computes BLEU-1 .. BLEU-4 from the output of `bleu_statistics`, or from sums over images."""
    length, reference_length = statistics[..., :1].astype(float), statistics[..., 1:2].astype(float)
    total, matched = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    precision_product = np.cumprod((matched + _TINY) / (total + _SMALL), axis=-1)
    scores = precision_product ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    with np.errstate(over="ignore", divide="ignore"):
        brevity_penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return scores * brevity_penalty


def _find_closest_lengths(
    reference_lengths: Int[np.ndarray, " references"],
    image_index: Int[np.ndarray, " references"],
    lengths: Int[np.ndarray, " images"],
) -> Int[np.ndarray, " images"]:
    distance = np.abs(reference_lengths - lengths[image_index])
    order = np.lexsort((reference_lengths, distance, image_index))
    first_of_image = np.searchsorted(image_index[order], np.arange(len(lengths)))
    return reference_lengths[order][first_of_image]


def _count_matches(
    captions: CountedCaptions, n: int, num_references: int, image_index: Int[np.ndarray, " captions"]
) -> Int[np.ndarray, " images"]:
    counts = captions.counts[n - 1]
    key = image_index[counts.caption] * max(1, counts.num_ngrams) + counts.ngram
    is_reference = counts.caption < num_references
    # Maximum count of each n-gram in any single reference of the image.
    order = np.lexsort((counts.count[is_reference], key[is_reference]))
    reference_key, reference_count = key[is_reference][order], counts.count[is_reference][order]
    is_last = np.append(reference_key[1:] != reference_key[:-1], True) if len(reference_key) else np.zeros(0, bool)
    reference_key, reference_count = reference_key[is_last], reference_count[is_last]
    hypothesis_key, hypothesis_count = key[~is_reference], counts.count[~is_reference]
    matched, position = match_keys(reference_key, hypothesis_key)
    clipped = np.minimum(hypothesis_count[matched], reference_count[position])
    images = image_index[counts.caption[~is_reference]][matched]
    return np.bincount(images, clipped, len(image_index) - num_references).astype(np.int64)


def match_keys(
    sorted_keys: Int[np.ndarray, " keys"], queries: Int[np.ndarray, " queries"]
) -> tuple[Int[np.ndarray, " matches"], Int[np.ndarray, " matches"]]:
    """Returns the indices of the queries that occur in `sorted_keys`, and their positions in `sorted_keys`."""
    if not len(sorted_keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    position = np.minimum(np.searchsorted(sorted_keys, queries), len(sorted_keys) - 1)
    matches = np.flatnonzero(sorted_keys[position] == queries)
    return matches, position[matches]
