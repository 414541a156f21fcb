"""Statistical significance: bootstrap intervals and paired comparisons of two systems on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from caption_jax.metrics.argument_checks import check_instance
from caption_jax.metrics.bleu import bleu
from caption_jax.metrics.scores import ImageScores
from input_pipeline.errors import ConfigError

_CHUNK_SIZE = 200  # samples per chunk, which limits memory usage


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
        p_value: probability of a difference of this size or larger if the systems are equivalent.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(scores: ImageScores, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Computes percentile bootstrap intervals over images (Efron, 1979) for each metric.

    Images are resampled with replacement. For each sample, BLEU is recomputed from its statistics, and the other
    metrics are averaged. CIDEr-D uses the document frequencies of all images. Deterministic for a fixed seed.

    Raises:
        TypeError: `scores` is not the result of `score_images`.
        ConfigError: `samples` or `confidence` is out of range.
    """
    check_instance("scores", scores, ImageScores, "score_images")
    sample_scores = np.concatenate(
        [_score_corpora(weights, scores) for weights in _sample_bootstrap_weights(len(scores.image_ids), samples, seed)]
    )
    low, high = _compute_percentile_interval(sample_scores, confidence)
    return {
        name: Interval(value, float(low[column]), float(high[column]))
        for column, (name, value) in enumerate(scores.corpus().items())
    }


def compare(
    first: ImageScores, second: ImageScores, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """Compares two systems on the same images for each metric.

    The interval is computed by paired bootstrap resampling (Koehn, 2004), which scores both systems on the same
    resampled images. The p-value is computed by two-sided approximate randomisation (Noreen, 1989), which randomly
    swaps the captions of the two systems for each image.

    Raises:
        TypeError: an argument is not the result of `score_images`.
        ValueError: the results do not cover the same images in the same order.
        ConfigError: `samples` or `confidence` is out of range.
    """
    check_instance("first", first, ImageScores, "score_images")
    check_instance("second", second, ImageScores, "score_images")
    if first.image_ids != second.image_ids:
        raise ValueError("the two results do not cover the same images in the same order")
    num_images = len(first.image_ids)
    differences = np.concatenate(
        [
            _score_corpora(weights, second) - _score_corpora(weights, first)
            for weights in _sample_bootstrap_weights(num_images, samples, seed)
        ]
    )
    low, high = _compute_percentile_interval(differences, confidence)
    names = list(first.values)
    ones = np.ones((1, num_images))
    observed = (_score_corpora(ones, second) - _score_corpora(ones, first))[0]
    exceedances = np.zeros(len(names))
    rng = np.random.default_rng([seed, 1])
    for count in _iterate_chunk_sizes(samples):
        swap = rng.integers(0, 2, (count, num_images)).astype(float)
        permuted = _score_corpora(1 - swap, second, swap, first) - _score_corpora(1 - swap, first, swap, second)
        # The tolerance includes exact ties, which can differ in the last digits because of the order of summation.
        exceedances += (np.abs(permuted) >= np.abs(observed) - 1e-12).sum(0)
    p_values = (1 + exceedances) / (1 + samples)
    return {
        name: Comparison(float(observed[i]), float(low[i]), float(high[i]), float(p_values[i]))
        for i, name in enumerate(names)
    }


def _score_corpora(
    weights: Float[np.ndarray, "samples images"],
    scores: ImageScores,
    other_weights: Float[np.ndarray, "samples images"] | None = None,
    other: ImageScores | None = None,
) -> Float[np.ndarray, "samples metrics"]:
    """Scores corpora in which each image of `scores` (and of `other`) occurs `weights` (`other_weights`) times."""
    corpus_size = weights.sum(1, keepdims=True)
    statistics = weights @ scores.bleu_statistics.astype(float)
    sums = weights @ np.stack(list(scores.values.values()), 1)
    if other is not None:
        corpus_size = corpus_size + other_weights.sum(1, keepdims=True)
        statistics = statistics + other_weights @ other.bleu_statistics.astype(float)
        sums = sums + other_weights @ np.stack(list(other.values.values()), 1)
    values = sums / corpus_size
    columns = [list(scores.values).index(f"BLEU-{n}") for n in range(1, 5)]
    values[:, columns] = bleu(statistics)
    return values


def _sample_bootstrap_weights(
    num_images: int, samples: int, seed: int
) -> Iterator[Float[np.ndarray, "samples images"]]:
    """Yields, in chunks of samples, how often each image occurs in each bootstrap sample."""
    rng = np.random.default_rng([seed, 0])
    for count in _iterate_chunk_sizes(samples):
        indices = rng.integers(0, num_images, (count, num_images))
        indices += np.arange(count)[:, None] * num_images
        yield np.bincount(indices.ravel(), minlength=count * num_images).reshape(count, num_images).astype(float)


def _iterate_chunk_sizes(samples: int) -> Iterator[int]:
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    for start in range(0, samples, _CHUNK_SIZE):
        yield min(_CHUNK_SIZE, samples - start)


def _compute_percentile_interval(
    values: Float[np.ndarray, "samples metrics"], confidence: float
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, " metrics"]]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
