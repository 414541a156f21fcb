"""Consensus of candidates: minimum Bayes risk decoding (Kumar and Byrne 2004, https://aclanthology.org/N04-1022).

A caption that says what the other probable captions say is a safer choice than the most probable one. Each candidate is
compared with all others by a metric, as if they were its references, and the mean of the scores, weighted by their
probabilities, estimates the score that it can expect. Everything is computed on the device, from token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from caption_jax.errors import ConfigError
from caption_jax.rewards.caption_words import Words, WordTable, find_words
from caption_jax.rewards.device_scores import pairwise_bleu_4, pairwise_cider_d, pairwise_rouge_l
from caption_jax.rewards.frequency_table import FrequencyTable

_METRICS: dict[str, Callable[[Words, FrequencyTable | None], Float[Array, "batch candidates others"]]] = {
    "CIDEr-D": lambda words, frequencies: pairwise_cider_d(words, words, frequencies),
    "BLEU-4": lambda words, frequencies: pairwise_bleu_4(words, words),
    "ROUGE-L": lambda words, frequencies: pairwise_rouge_l(words, words),
}


class Consensus(NamedTuple):
    """Properties of the vocabulary and of the training captions that the metrics require.

    Attributes:
        words: converts token ids to words.
        frequencies: document frequencies for CIDEr-D; None for the other metrics.
    """

    words: WordTable
    frequencies: FrequencyTable | None = None

    def fingerprint(self) -> str:
        """Returns a hash of all arrays, which are constants of compiled programs."""
        digest = hashlib.sha256()
        for array in jax.tree.leaves(self):
            digest.update(str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def expected_scores(
    tokens: Int[Array, "batch candidates length"],
    probabilities: Float[Array, "batch candidates"],
    metric: str,
    consensus: Consensus,
) -> Float[Array, "batch candidates"]:
    """Computes the score that each candidate can expect if one of the others is the reference.

    Args:
        tokens: token ids of the candidates after <s>.
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
    consensus = jax.tree.map(jnp.asarray, consensus)
    words = find_words(tokens, consensus.words, include_end=False)
    weights = probabilities[:, None] * ~jnp.eye(tokens.shape[1], dtype=bool)
    scores = (_METRICS[metric](words, consensus.frequencies) * weights).sum(-1)
    total = weights.sum(-1)
    return jnp.where(total > 1e-9, scores / jnp.maximum(total, 1e-9), 0.0)
