"""CIDEr-D, BLEU-4 and ROUGE-L per caption, inside a jitted function.

They equal those of `caption_jax.metrics` up to rounding in float32. All of them compare candidates [images,
candidates] with references [images, references], of which `is_reference` selects those that exist.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.metrics.cider import SIGMA
from caption_jax.metrics.ngrams import MAX_ORDER
from caption_jax.metrics.rouge import BETA_SQUARED
from caption_jax.rewards.caption_words import Words
from caption_jax.rewards.frequency_table import FrequencyTable
from caption_jax.rewards.ngram_matches import NGrams, find_ngrams, match_ngrams

_TINY, _SMALL = 1e-15, 1e-9  # as in `caption_jax.metrics.bleu`

Scores = Float[Array, "images candidates"]
PairwiseScores = Float[Array, "images candidates references"]
References = Bool[Array, "images references"]


def cider_d(candidates: Words, references: Words, is_reference: References, frequencies: FrequencyTable) -> Scores:
    """Computes CIDEr-D, the mean of `pairwise_cider_d` over references; 0 for images without references."""
    pairwise = pairwise_cider_d(candidates, references, frequencies)
    mask = is_reference[:, None].astype(jnp.float32)
    return (pairwise * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def pairwise_cider_d(candidates: Words, references: Words, frequencies: FrequencyTable) -> PairwiseScores:
    """Computes CIDEr-D of each candidate with each reference alone, between 0 and 10.

    The references may be other candidates of the same images, as in minimum Bayes risk decoding.

    Args:
        candidates: words of captions [images, candidates].
        references: words of captions [images, references].
        frequencies: document frequencies of the training references.
    """
    ngrams, others = find_ngrams(candidates), find_ngrams(references)
    weights, other_weights = frequencies.weigh(ngrams), frequencies.weigh(others)
    matched = match_ngrams(ngrams, others, other_weights)
    products = (jnp.minimum(weights[:, :, None], matched) * matched).sum(-1)
    norms, other_norms = jnp.sqrt(jnp.square(weights).sum(-1)), jnp.sqrt(jnp.square(other_weights).sum(-1))
    scales = norms[:, :, None] * other_norms[:, None]
    cosines = jnp.where(scales > 0, products / jnp.where(scales > 0, scales, 1), 0)
    # COCO's tools define the length of a caption as its number of bigrams.
    lengths, other_lengths = (jnp.maximum(words.counts - 1, 0) for words in (candidates, references))
    differences = (lengths[:, :, None] - other_lengths[:, None]).astype(jnp.float32)
    return 10 * cosines.mean(-1) * jnp.exp(-jnp.square(differences) / (2 * SIGMA**2))


def bleu_4(candidates: Words, references: Words, is_reference: References) -> Scores:
    """Computes BLEU-4 of each caption, as COCO's tools do for single images."""
    ngrams, others = find_ngrams(candidates), find_ngrams(references)
    counts = jnp.where(is_reference[..., None, None], others.counts, 0)
    clipped = jnp.minimum(match_ngrams(ngrams, others, counts).max(2), ngrams.counts)
    totals = jnp.maximum(candidates.counts[..., None] - jnp.arange(MAX_ORDER), 0)
    log_precisions = jnp.log(clipped.sum(-1) + _TINY) - jnp.log(totals + _SMALL)
    ratio = (candidates.counts + _TINY) / (_find_closest_lengths(ngrams, others, is_reference) + _SMALL)
    return jnp.exp(log_precisions.mean(-1) + jnp.minimum(0, 1 - 1 / ratio))


def pairwise_bleu_4(candidates: Words, references: Words) -> PairwiseScores:
    """Computes BLEU-4 of each candidate with each reference alone, between 0 and 1.

    One is added to the counts of n-grams longer than a word (Lin and Och 2004, https://aclanthology.org/C04-1072),
    because few pairs of captions have four words in a row in common.
    """
    ngrams, others = find_ngrams(candidates), find_ngrams(references)
    matched = jnp.minimum(match_ngrams(ngrams, others, others.counts), ngrams.counts[:, :, None]).sum(-1)
    smoothing = jnp.arange(MAX_ORDER) > 0
    totals = jnp.maximum(candidates.counts[..., None] - jnp.arange(MAX_ORDER), 0)[:, :, None]
    log_precisions = jnp.log(jnp.maximum(matched + smoothing, _TINY) / jnp.maximum(totals + smoothing, 1))
    shortage = 1 - references.counts[:, None] / jnp.maximum(candidates.counts, 1)[:, :, None]
    scores = jnp.exp(log_precisions.mean(-1) + jnp.minimum(shortage, 0))
    return jnp.where(matched[..., 0] > 0, scores, 0)


def rouge_l(candidates: Words, references: Words, is_reference: References) -> Scores:
    """Computes ROUGE-L of each caption; 0 for captions without words."""
    precision, recall = _compute_lcs_fractions(candidates, references)
    mask = is_reference[:, None]
    return _combine((precision * mask).max(-1), (recall * mask).max(-1))


def pairwise_rouge_l(candidates: Words, references: Words) -> PairwiseScores:
    """Computes ROUGE-L of each candidate with each reference alone, between 0 and 1."""
    return _combine(*_compute_lcs_fractions(candidates, references))


def _combine(precision: Float[Array, "*shape"], recall: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    denominator = recall + BETA_SQUARED * precision
    return (1 + BETA_SQUARED) * precision * recall / jnp.where(denominator > 0, denominator, 1)


def _compute_lcs_fractions(candidates: Words, references: Words) -> tuple[PairwiseScores, PairwiseScores]:
    """Returns the longest common subsequences, as fractions of the candidates and of the references."""
    common = _compute_lcs_lengths(candidates, references)
    precision = common / jnp.maximum(candidates.counts, 1)[:, :, None]
    return precision, common / jnp.maximum(references.counts, 1)[:, None]


def _find_closest_lengths(candidates: NGrams, references: NGrams, is_reference: References) -> Scores:
    """Returns the length of the reference of the most similar length, the shorter one in a tie."""
    lengths = references.lengths[:, None].astype(jnp.float32)
    differences = lengths - candidates.lengths[:, :, None]
    distances = jnp.where(is_reference[:, None], jnp.abs(differences) + 0.25 * (differences > 0), jnp.inf)
    nearest = distances.argmin(-1)
    return jnp.take_along_axis(jnp.broadcast_to(lengths, distances.shape), nearest[..., None], axis=-1)[..., 0]


def _compute_lcs_lengths(candidates: Words, references: Words) -> PairwiseScores:
    """Computes the length of the longest common subsequence of each candidate and each reference."""
    keys = references.keys[:, None]
    is_word = references.is_word[:, None]

    def add_word(lengths, word):
        """Updates the lengths of the common subsequences with the first 1, 2, .. words of a reference."""
        key, is_candidate_word = word
        is_same = (keys == key[:, :, None, None]).all(-1) & is_word & is_candidate_word[:, :, None, None]
        extended = jnp.pad(lengths[..., :-1], [(0, 0)] * 3 + [(1, 0)]) + is_same
        return jax.lax.cummax(jnp.maximum(lengths, extended), axis=3), None

    images, rows = candidates.counts.shape
    lengths = jnp.zeros((images, rows, *references.is_word.shape[1:]), jnp.int32)
    words = jnp.moveaxis(candidates.keys, 2, 0), jnp.moveaxis(candidates.is_word, 2, 0)
    lengths, _ = jax.lax.scan(add_word, lengths, words)
    return lengths[..., -1].astype(jnp.float32)
