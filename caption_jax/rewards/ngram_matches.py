"""N-grams of captions on the device, and their matches in other captions."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from caption_jax.metrics.ngrams import MAX_ORDER
from caption_jax.rewards.caption_words import Words
from caption_jax.rewards.word_keys import extend


class NGrams(NamedTuple):
    """N-grams of captions for n = 1 .. 4, each at the position of its first word.

    Attributes:
        keys: keys of the n-grams; undefined where there is none.
        counts: how often the n-gram occurs in the caption, at its first occurrence; 0 at all other positions.
        lengths: number of words per caption.
    """

    keys: UInt32[Array, "*captions orders words 2"]
    counts: Float[Array, "*captions orders words"]
    lengths: Int[Array, "*captions"]


def find_ngrams(words: Words) -> NGrams:
    """Finds and counts the n-grams of captions."""
    order_keys, order_masks = [words.keys], [words.is_word]
    for n in range(2, MAX_ORDER + 1):
        following = _shift(words.keys, n - 1)
        order_keys.append(extend(order_keys[-1], following))
        order_masks.append(jnp.arange(words.keys.shape[-2]) + n <= words.counts[..., None])
    keys, is_ngram = jnp.stack(order_keys, axis=-3), jnp.stack(order_masks, axis=-2)
    is_same = _are_equal(keys, keys) & is_ngram[..., None, :] & is_ngram[..., :, None]
    positions = jnp.arange(keys.shape[-2])
    is_repeated = (is_same & (positions < positions[:, None])).any(-1)
    return NGrams(keys, jnp.where(is_repeated, 0, is_same.sum(-1)).astype(jnp.float32), words.counts)


def match_ngrams(
    candidates: NGrams, references: NGrams, values: Float[Array, "images references orders others"]
) -> Float[Array, "images candidates references orders words"]:
    """Returns, for each n-gram of the candidates, the value of the same n-gram in each reference, or 0.

    Args:
        candidates: n-grams of captions [images, candidates].
        references: n-grams of captions [images, references].
        values: values of the n-grams of the references, 0 where their count is 0.
    """
    is_same = _are_equal(candidates.keys[:, :, None], references.keys[:, None])
    return jnp.where(is_same, values[:, None, :, :, None], 0).sum(-1)


def _are_equal(
    keys: UInt32[Array, "*batch words 2"], others: UInt32[Array, "*other_batch others 2"]
) -> Bool[Array, "... words others"]:
    """Compares all keys with all others. Both halves are compared in one expression, which XLA fuses with a sum."""
    left, right = keys[..., :, None, :], others[..., None, :, :]
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])


def _shift(keys: UInt32[Array, "*captions words 2"], count: int) -> UInt32[Array, "*captions words 2"]:
    """Moves keys to the front by `count` positions."""
    size = keys.shape[-2]
    padding = jnp.zeros((*keys.shape[:-2], min(count, size), 2), jnp.uint32)
    return jnp.concatenate([keys[..., count:, :], padding], axis=-2)
