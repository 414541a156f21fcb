"""Rewards of generated captions by name, inside a jitted function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.rewards.caption_words import append_end, ends_in_function_word, find_words
from caption_jax.rewards.device_scores import bleu_4, cider_d, rouge_l
from caption_jax.rewards.reward_tables import RewardTables

METRICS = {
    "cider_d": lambda words, references, tables: cider_d(words, *references, tables.frequencies),
    "bleu_4": lambda words, references, tables: bleu_4(words, *references),
    "rouge_l": lambda words, references, tables: rouge_l(words, *references),
}


class CaptionRewards(NamedTuple):
    """Properties of captions that contribute to a reward or are logged.

    Attributes:
        metrics: scores of the captions by the name of the metric.
        words: number of words, without </s>.
        has_function_ending: whether the caption ends in a function word (`FUNCTION_WORDS`).
    """

    metrics: dict[str, Float[Array, "images candidates"]]
    words: Float[Array, "images candidates"]
    has_function_ending: Bool[Array, "images candidates"]


def score_captions(
    tokens: Int[Array, "images candidates length"],
    index: Int[Array, " images"],
    tables: RewardTables,
    metrics: Iterable[str],
    *,
    include_end: bool = True,
) -> CaptionRewards:
    """Scores captions against the references of their images.

    Args:
        tokens: token ids after <s>, as in `Decoded.all_tokens`.
        index: indices of the images in the training split.
        tables: tables of the training split.
        metrics: names in `METRICS` to compute.
        include_end: whether </s> is the last word of captions; must be the same as for `tables`.
    """
    words = find_words(tokens, tables.words, include_end=False)
    scored = append_end(words, tokens, tables.words) if include_end else words
    references = tables.references.select(index)
    return CaptionRewards(
        {name: METRICS[name](scored, references, tables) for name in metrics},
        words.counts.astype(jnp.float32),
        ends_in_function_word(words, tables.words),
    )
