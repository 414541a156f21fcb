"""How sure a score is: bootstrap intervals, and the comparison of two systems on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from caption_jax.metrics.bleu import bleu
from caption_jax.metrics.scores import ImageScores
from input_pipeline.errors import ConfigError

_AT_ONCE = 200  # samples drawn together; bounds the memory


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score over all images, and the range that holds it with the given confidence."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The second system's score less the first's.

    Attributes:
        difference: over all images.
        low: lower end of its interval; likewise `high`.
        p_value: how often a difference at least as large comes about by chance where the systems are alike.
    """

    difference: float
    low: float
    high: float
    p_value: float


def intervals(scores: ImageScores, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Percentile bootstrap over images (Efron, 1979), for each metric; the same for the same seed.

    Images are drawn with replacement and the corpus is scored anew: BLEU from its counts, the others as means. CIDEr-D
    keeps the document frequencies of all images.
    """
    drawn = np.concatenate([_corpus(weights, scores) for weights in _draws(len(scores.image_ids), samples, seed)])
    low, high = _range(drawn, confidence)
    return {
        name: Interval(value, float(low[column]), float(high[column]))
        for column, (name, value) in enumerate(scores.corpus().items())
    }


def compare(
    first: ImageScores, second: ImageScores, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """Compares two systems on the same images, metric by metric.

    The interval is a paired bootstrap (both are scored on the same drawn images; Koehn, 2004). The p-value is two-sided
    approximate randomization (Noreen, 1989): the systems' captions of an image are swapped at random.

    Raises:
        ValueError: the two are not about the same images in the same order.
    """
    if first.image_ids != second.image_ids:
        raise ValueError("the two results are not about the same images in the same order")
    images = len(first.image_ids)
    differences = np.concatenate(
        [_corpus(weights, second) - _corpus(weights, first) for weights in _draws(images, samples, seed)]
    )
    low, high = _range(differences, confidence)
    names = list(first.values)
    everything = np.ones((1, images))
    observed = (_corpus(everything, second) - _corpus(everything, first))[0]
    as_large = np.zeros(len(names))
    rng = np.random.default_rng([seed, 1])
    for count in _counts(samples):
        swap = rng.integers(0, 2, (count, images)).astype(float)
        by_chance = _corpus(1 - swap, second, swap, first) - _corpus(1 - swap, first, swap, second)
        # Sums in another order may differ in their last digits: an exact tie must count.
        as_large += (np.abs(by_chance) >= np.abs(observed) - 1e-12).sum(0)
    p_values = (1 + as_large) / (1 + samples)
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
    """Scores of corpora in which each image of `scores` (and of `others`) occurs `weights` times."""
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


def _draws(images: int, samples: int, seed: int) -> Iterator[Float[np.ndarray, "samples images"]]:
    """How often each image is drawn, for some samples at a time."""
    rng = np.random.default_rng([seed, 0])
    for count in _counts(samples):
        drawn = rng.integers(0, images, (count, images))
        drawn += np.arange(count)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(float)


def _counts(samples: int) -> Iterator[int]:
    if samples < 1:
        raise ConfigError(f"samples is {samples}; at least 1 is needed")
    for start in range(0, samples, _AT_ONCE):
        yield min(_AT_ONCE, samples - start)


def _range(
    drawn: Float[np.ndarray, "samples metrics"], confidence: float
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, " metrics"]]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it lies between 0 and 1")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
