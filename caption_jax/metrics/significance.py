"""Statistical significance: bootstrap intervals, and paired comparison of two systems on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from caption_jax.metrics.bleu import bleu
from caption_jax.metrics.scores import ImageScores
from input_pipeline.errors import ConfigError

_CHUNK = 200  # samples per chunk; bounds the memory


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score over all images with its confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Difference between the scores of two systems, second minus first.

    Attributes:
        difference: difference over all images.
        low: lower bound of its confidence interval.
        high: upper bound of its confidence interval.
        p_value: probability of a difference at least as large under the null hypothesis of equivalent systems.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(scores: ImageScores, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Percentile bootstrap intervals over images (Efron, 1979) for each metric; deterministic for a fixed seed.

    Images are resampled with replacement and corpus scores are recomputed: BLEU from its statistics, the others as
    means. CIDEr-D keeps the document frequencies of all images.
    """
    resampled = np.concatenate(
        [_corpus(weights, scores) for weights in _bootstrap_weights(len(scores.image_ids), samples, seed)]
    )
    low, high = _percentile_interval(resampled, confidence)
    return {
        name: Interval(value, float(low[column]), float(high[column]))
        for column, (name, value) in enumerate(scores.corpus().items())
    }


def compare(
    first: ImageScores, second: ImageScores, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """Compares two systems on the same images, metric by metric.

    The interval comes from a paired bootstrap (both systems are scored on the same resampled images; Koehn, 2004). The
    p-value comes from two-sided approximate randomization (Noreen, 1989): per image, the captions of the two systems
    are swapped at random.

    Raises:
        ValueError: the results do not cover the same images in the same order.
    """
    if first.image_ids != second.image_ids:
        raise ValueError("the two results do not cover the same images in the same order")
    images = len(first.image_ids)
    differences = np.concatenate(
        [_corpus(weights, second) - _corpus(weights, first) for weights in _bootstrap_weights(images, samples, seed)]
    )
    low, high = _percentile_interval(differences, confidence)
    names = list(first.values)
    ones = np.ones((1, images))
    observed = (_corpus(ones, second) - _corpus(ones, first))[0]
    exceedances = np.zeros(len(names))
    rng = np.random.default_rng([seed, 1])
    for count in _chunk_sizes(samples):
        swap = rng.integers(0, 2, (count, images)).astype(float)
        permuted = _corpus(1 - swap, second, swap, first) - _corpus(1 - swap, first, swap, second)
        # The tolerance counts exact ties, whose sums may differ in the last digits because of summation order.
        exceedances += (np.abs(permuted) >= np.abs(observed) - 1e-12).sum(0)
    p_values = (1 + exceedances) / (1 + samples)
    return {
        name: Comparison(float(observed[i]), float(low[i]), float(high[i]), float(p_values[i]))
        for i, name in enumerate(names)
    }


def _corpus(
    weights: Float[np.ndarray, "samples images"],
    scores: ImageScores,
    other_weights: Float[np.ndarray, "samples images"] | None = None,
    others: ImageScores | None = None,
) -> Float[np.ndarray, "samples metrics"]:
    """Scores of corpora in which each image of `scores` (and of `others`) occurs `weights` (`other_weights`) times."""
    images = weights.sum(1, keepdims=True)
    statistics = weights @ scores.bleu_statistics.astype(float)
    sums = weights @ np.stack(list(scores.values.values()), 1)
    if others is not None:
        images = images + other_weights.sum(1, keepdims=True)
        statistics = statistics + other_weights @ others.bleu_statistics.astype(float)
        sums = sums + other_weights @ np.stack(list(others.values.values()), 1)
    values = sums / images
    columns = [list(scores.values).index(f"BLEU-{n}") for n in range(1, 5)]
    values[:, columns] = bleu(statistics)
    return values


def _bootstrap_weights(images: int, samples: int, seed: int) -> Iterator[Float[np.ndarray, "samples images"]]:
    """Yields, chunk by chunk, the number of times each image occurs in each bootstrap sample."""
    rng = np.random.default_rng([seed, 0])
    for count in _chunk_sizes(samples):
        indices = rng.integers(0, images, (count, images))
        indices += np.arange(count)[:, None] * images
        yield np.bincount(indices.ravel(), minlength=count * images).reshape(count, images).astype(float)


def _chunk_sizes(samples: int) -> Iterator[int]:
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    for start in range(0, samples, _CHUNK):
        yield min(_CHUNK, samples - start)


def _percentile_interval(
    values: Float[np.ndarray, "samples metrics"], confidence: float
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, " metrics"]]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
