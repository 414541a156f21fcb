"""Consensus of candidates: minimum Bayes risk decoding (Kumar and Byrne 2004, https://aclanthology.org/N04-1022).

A caption that says what the other probable captions say is a safer choice than the most probable one. Each candidate is
compared with all others by a metric, as if they were its references, and the mean of the scores, weighted by their
probabilities, estimates the score that it can expect. Everything is computed on the device, from token ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from caption_jax.decoding.token_ngrams import NgramFrequencies, hash_ngrams
from caption_jax.errors import ConfigError
from caption_jax.metrics.cider import SIGMA
from caption_jax.metrics.ngrams import MAX_ORDER
from caption_jax.metrics.rouge import BETA_SQUARED

_NO_WORD = -1


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Properties of the vocabulary and of the training captions that the metrics require.

    Attributes:
        is_word: which tokens are words; the others are left out (`token_ngrams.find_words`).
        frequencies: document frequencies for CIDEr-D; None for the other metrics.
    """

    is_word: Bool[np.ndarray, " vocabulary"]
    frequencies: NgramFrequencies | None = None

    def fingerprint(self) -> str:
        """Returns a hash of all arrays, which are constants of compiled programs."""
        digest = hashlib.sha256(self.is_word.tobytes())
        if self.frequencies is not None:
            digest.update(str(self.frequencies.images).encode())
            digest.update(self.frequencies.hashes.tobytes() + self.frequencies.counts.tobytes())
        return digest.hexdigest()


class _Captions(NamedTuple):
    """Words of captions, moved to the front; the first axes are [batch, candidates]."""

    words: Int[Array, "batch candidates length"]
    lengths: Int[Array, "batch candidates"]


class _Ngrams(NamedTuple):
    """The n-grams of one order, by the position at which they start.

    Attributes:
        is_first: True at the first position of each distinct n-gram.
        count: number of times that the n-gram occurs in the caption.
        weight: inverse document frequency; 1 for metrics without.
    """

    is_first: Bool[Array, "batch candidates positions"]
    count: Float[Array, "batch candidates positions"]
    weight: Float[Array, "batch candidates positions"]


def expected_scores(
    tokens: Int[Array, "batch candidates length"],
    probabilities: Float[Array, "batch candidates"],
    metric: str,
    consensus: Consensus,
) -> Float[Array, "batch candidates"]:
    """Computes the score that each candidate can expect if one of the others is the reference.

    Args:
        tokens: token ids of the candidates.
        probabilities: weights of the candidates as references, not necessarily normalised.
        metric: "CIDEr-D" (0 to 10), "BLEU-4" (of the sentence, smoothed) or "ROUGE-L".
        consensus: the words of the vocabulary, and document frequencies for CIDEr-D.

    Returns:
        The mean score over the other candidates, weighted by their probabilities; 0 if these are all 0.

    Raises:
        ConfigError: the metric is CIDEr-D, and there are no document frequencies.
    """
    if metric == "CIDEr-D" and consensus.frequencies is None:
        raise ConfigError(f'config.decode.consensus_metric="{metric}" requires the document frequencies of a run')
    captions = _extract_words(tokens, jnp.asarray(consensus.is_word))
    orders = range(1, MAX_ORDER + 1)
    weighted = consensus.frequencies if metric == "CIDEr-D" else None
    ngrams = [] if metric == "ROUGE-L" else [_count_ngrams(captions, n, weighted) for n in orders]
    number = tokens.shape[1]

    def add_reference(index: Int[Array, ""], total: Float[Array, "batch candidates"]) -> Float[Array, "..."]:
        reference = _Captions(captions.words[:, index][:, None], captions.lengths[:, index][:, None])
        if metric == "ROUGE-L":
            scores = _rouge_l(captions, reference)
        else:
            of_reference = [_Ngrams(*(array[:, index][:, None] for array in order)) for order in ngrams]
            compare = _cider_d if metric == "CIDEr-D" else _bleu
            scores = compare(captions, ngrams, reference, of_reference)
        is_other = jnp.arange(number) != index
        return total + jnp.where(is_other, scores * probabilities[:, index][:, None], 0.0)

    total = jax.lax.fori_loop(0, number, add_reference, jnp.zeros(tokens.shape[:2], jnp.float32))
    others = probabilities.sum(1, keepdims=True) - probabilities
    return jnp.where(others > 1e-9, total / jnp.maximum(others, 1e-9), 0.0)


def _extract_words(tokens: Int[Array, "batch candidates length"], is_word: Bool[Array, " vocabulary"]) -> _Captions:
    keep = is_word[tokens]
    order = jnp.argsort(~keep, axis=-1, stable=True)
    words = jnp.take_along_axis(jnp.where(keep, tokens, _NO_WORD), order, axis=-1)
    missing = max(MAX_ORDER - words.shape[-1], 0)
    words = jnp.pad(words, ((0, 0), (0, 0), (0, missing)), constant_values=_NO_WORD)
    return _Captions(words, keep.sum(-1))


def _match(
    captions: _Captions, references: _Captions, order: int
) -> Bool[Array, "batch candidates positions reference_positions"]:
    """Returns where n-grams of the captions equal n-grams of the references."""
    count = captions.words.shape[-1] - order + 1
    equal = captions.words[..., :, None] == references.words[..., None, :]
    equal &= (captions.words != _NO_WORD)[..., :, None]
    matches = equal[..., :count, :count]
    for offset in range(1, order):
        matches &= equal[..., offset : offset + count, offset : offset + count]
    return matches


def _count_ngrams(captions: _Captions, order: int, frequencies: NgramFrequencies | None) -> _Ngrams:
    matches = _match(captions, captions, order)
    positions = jnp.arange(matches.shape[-1])
    is_ngram = positions <= captions.lengths[..., None] - order
    occurs_before = (matches & (positions[:, None] < positions)).any(-2)
    hashes = hash_ngrams(captions.words, order)
    weight = jnp.ones(hashes.shape, jnp.float32) if frequencies is None else _look_up_weights(hashes, frequencies)
    return _Ngrams(is_ngram & ~occurs_before, matches.sum(-2, dtype=jnp.float32), weight)


def _look_up_weights(hashes: Array, frequencies: NgramFrequencies) -> Float[Array, "..."]:
    """Returns the inverse document frequencies of n-grams, given their hashes."""
    images = np.log(max(frequencies.images, 1))
    if not len(frequencies.hashes):
        return jnp.full(hashes.shape, images, jnp.float32)
    table = jnp.asarray(frequencies.hashes)
    weights = jnp.asarray(images - np.log(np.maximum(frequencies.counts, 1)), jnp.float32)
    index = jnp.minimum(jnp.searchsorted(table, hashes), len(frequencies.hashes) - 1)
    return jnp.where(table[index] == hashes, weights[index], jnp.float32(images))


def _cider_d(
    captions: _Captions, ngrams: list[_Ngrams], reference: _Captions, of_reference: list[_Ngrams]
) -> Float[Array, "batch candidates"]:
    """Computes CIDEr-D with one reference per image, as `caption_jax.metrics`."""
    cosines = []
    for n, (own, other) in enumerate(zip(ngrams, of_reference, strict=True), 1):
        matched = _match(captions, reference, n).sum(-2, dtype=jnp.float32)  # counts of the reference's n-grams
        products = jnp.minimum(matched, other.count) * other.count * other.weight**2
        dot = jnp.where(other.is_first, products, 0.0).sum(-1)
        norms = [jnp.where(one.is_first, one.count * one.weight, 0.0) for one in (own, other)]
        norm = jnp.sqrt((norms[0] ** 2).sum(-1) * (norms[1] ** 2).sum(-1))
        cosines.append(jnp.where(norm > 0, dot / jnp.where(norm > 0, norm, 1.0), 0.0))
    bigrams = [jnp.maximum(one.lengths - 1, 0) for one in (captions, reference)]
    penalty = jnp.exp(-((bigrams[0] - bigrams[1]) ** 2) / (2 * SIGMA**2))
    return 10.0 * sum(cosines) / MAX_ORDER * penalty


def _bleu(
    captions: _Captions, ngrams: list[_Ngrams], reference: _Captions, of_reference: list[_Ngrams]
) -> Float[Array, "batch candidates"]:
    """Computes sentence-level BLEU-4; one is added to the counts of longer n-grams than words (Lin and Och, 2004)."""
    log_precision = jnp.zeros(captions.lengths.shape, jnp.float32)
    matches_any = None
    for n, other in enumerate(of_reference, 1):
        matched = _match(captions, reference, n).sum(-2, dtype=jnp.float32)
        matched = jnp.where(other.is_first, jnp.minimum(matched, other.count), 0.0).sum(-1)
        total = jnp.maximum(captions.lengths - n + 1, 0)
        matches_any = matched > 0 if matches_any is None else matches_any
        smoothing = 0 if n == 1 else 1
        log_precision += jnp.log(jnp.maximum(matched + smoothing, 1e-9) / jnp.maximum(total + smoothing, 1))
    shortage = 1 - reference.lengths / jnp.maximum(captions.lengths, 1)
    return jnp.where(matches_any, jnp.exp(log_precision / MAX_ORDER + jnp.minimum(shortage, 0.0)), 0.0)


def _rouge_l(captions: _Captions, reference: _Captions) -> Float[Array, "batch candidates"]:
    """Computes ROUGE-L with one reference per image."""
    equal = _match(captions, reference, 1).astype(jnp.int32)

    def add_word(row: Int[Array, "batch candidates positions"], matches: Int[Array, "..."]) -> tuple:
        """Computes a row of the table of longest common subsequences from the previous row."""
        diagonal = jnp.pad(row[..., :-1], ((0, 0), (0, 0), (1, 0))) + matches
        return jax.lax.cummax(jnp.maximum(row, diagonal), axis=2), None

    row, _ = jax.lax.scan(add_word, jnp.zeros_like(equal[..., 0, :]), jnp.moveaxis(equal, 2, 0))
    common = row[..., -1]
    precision, recall = (common / jnp.maximum(one.lengths, 1) for one in (captions, reference))
    denominator = recall + BETA_SQUARED * precision
    f_score = (1 + BETA_SQUARED) * precision * recall / jnp.where(common > 0, denominator, 1.0)
    return jnp.where(common > 0, f_score, 0.0)
