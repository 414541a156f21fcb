"""Constraints on captions: functions of log-probabilities that can be combined in any order.

A constraint is called at each step with the log-probabilities of the next token and the tokens so far, and returns
modified log-probabilities, where -inf forbids a token and lower values penalise it. They are not renormalised, so if
constraints only forbid tokens, beam search ranks the allowed captions by their probability under the model. A
constraint must not return values above 0, because early stopping relies on scores that never increase.

Example:
    `[min_length(5, eos_id=2), no_repeat_ngram(3), banned_endings([[17], [23]], eos_id=2)]` requires at least three
    tokens between <s> and </s>, no repeated trigram, and captions that do not end in token 17 or 23. At step 0, the
    first constraint forbids </s> by changing log-probabilities `[-9, -9, -1.2, -1.6, -0.7]` to
    `[-9, -9, -inf, -1.6, -0.7]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from caption_jax.errors import ConfigError

LogProbs = Float[Array, "batch rows vocabulary"]


class Progress(NamedTuple):
    """The captions generated so far.

    Attributes:
        tokens: token ids after <s>; entries from index `step` on are undefined.
        step: number of tokens generated so far.
    """

    tokens: Int[Array, "batch rows length"]
    step: Int[Array, ""]

    def last(self, count: int) -> Int[Array, "batch rows count"]:
        """Returns the last `count` tokens; undefined while `step < count`."""
        return jax.lax.dynamic_slice_in_dim(self.tokens, jnp.maximum(self.step - count, 0), count, axis=-1)

    def ends_with(self, ids: Sequence[int]) -> Bool[Array, "batch rows"]:
        """Returns whether each caption so far ends with `ids` (at most `length` tokens)."""
        return (self.last(len(ids)) == np.asarray(ids, np.int32)).all(-1) & (self.step >= len(ids))


Constraint = Callable[[LogProbs, Progress], LogProbs]


def constrain(constraints: Sequence[Constraint], log_probs: LogProbs, progress: Progress) -> LogProbs:
    """Applies the constraints in order."""
    for constraint in constraints:
        log_probs = constraint(log_probs, progress)
    return log_probs


def min_length(tokens: int | Int[Array, ""], *, eos_id: int) -> Constraint:
    """Forbids captions shorter than `tokens` tokens, including <s> and </s>."""

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length_if_finished = progress.step + 2
        return _forbid(log_probs, _one_hot(eos_id, log_probs) & (length_if_finished < tokens))

    return apply


def max_length(tokens: int | Int[Array, "*images"] | None = None, *, eos_id: int) -> Constraint:
    """Forces </s> so that every caption has at most `tokens` tokens, including <s> and </s>, or one number per image.

    If `tokens` is None, the length limit of decoding is used, which otherwise truncates captions without adding </s>.
    """

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length_if_finished = progress.step + 2
        limit = progress.tokens.shape[-1] + 1 if tokens is None else jnp.expand_dims(tokens, (-2, -1))
        return _forbid(log_probs, ~_one_hot(eos_id, log_probs) & (length_if_finished >= limit))

    return apply


def banned_tokens(ids: Sequence[int]) -> Constraint:
    """Forbids the given tokens."""
    ids = np.asarray(ids, np.int32)

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        return _forbid(log_probs, _multi_hot(ids, log_probs))

    return apply


def banned_phrases(phrases: Sequence[Sequence[int]]) -> Constraint:
    """Forbids the given token sequences anywhere in a caption."""
    phrases = [np.asarray(phrase, np.int32) for phrase in phrases if len(phrase)]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        for phrase in phrases:
            if len(phrase) <= progress.tokens.shape[-1]:
                is_partial_match = progress.ends_with(phrase[:-1])
                log_probs = _forbid(log_probs, _one_hot(int(phrase[-1]), log_probs) & is_partial_match[..., None])
        return log_probs

    return apply


def banned_endings(endings: Sequence[Sequence[int]], *, eos_id: int) -> Constraint:
    """Forbids captions that end in any of the given token sequences, before </s> or at the length limit."""
    endings = [np.asarray(ending, np.int32) for ending in endings if len(ending)]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length = progress.tokens.shape[-1]
        is_last_step = progress.step == length - 1
        for ending in endings:
            if len(ending) > length:
                continue
            log_probs = _forbid(log_probs, _one_hot(eos_id, log_probs) & progress.ends_with(ending)[..., None])
            # At the length limit the next token is the last one, so it must not complete the ending.
            is_partial_match = is_last_step & progress.ends_with(ending[:-1])
            log_probs = _forbid(log_probs, _one_hot(int(ending[-1]), log_probs) & is_partial_match[..., None])
        return log_probs

    return apply


def required_prefix(ids: Int[Array, "*images length"] | Sequence[int]) -> Constraint:
    """Forces captions to start with the given tokens: one prefix for all images, or one per image, padded with -1."""
    ids = jnp.asarray(ids, jnp.int32)
    ids = ids if ids.ndim == 2 else ids[None]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        if ids.shape[1] == 0:
            return log_probs
        index = jnp.minimum(progress.step, ids.shape[1] - 1)
        required = jax.lax.dynamic_index_in_dim(ids, index, axis=1)[:, :, None]  # [images or 1, 1, 1]
        is_in_prefix = (required >= 0) & (progress.step < ids.shape[1])
        return _forbid(log_probs, is_in_prefix & (jnp.arange(log_probs.shape[-1]) != required))

    return apply


def no_repeat_ngram(size: int) -> Constraint:
    """Forbids repeated n-grams of `size` tokens (Paulus et al., 2017, https://arxiv.org/abs/1705.04304)."""
    if size < 1:
        raise ConfigError(f"no_repeat_ngram must be at least 1, got {size}")

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length = progress.tokens.shape[-1]
        num_ngrams = length - size + 1
        if num_ngrams < 1:
            return log_probs
        is_match = jnp.arange(num_ngrams) + size - 1 < progress.step  # only complete n-grams
        if size > 1:
            context = progress.last(size - 1)
            matches = [progress.tokens[..., i : i + num_ngrams] == context[..., i : i + 1] for i in range(size - 1)]
            is_match = is_match & jnp.stack(matches).all(0)
        is_match = jnp.broadcast_to(is_match, (*log_probs.shape[:2], num_ngrams))
        return _scatter_min(log_probs, progress.tokens[..., size - 1 :], jnp.where(is_match, -jnp.inf, jnp.inf))

    return apply


def no_immediate_repeats() -> Constraint:
    """Forbids immediate repeats of a token, as in "a large large dog"; words of several tokens can still repeat."""

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        is_repeat = jnp.arange(log_probs.shape[-1]) == progress.last(1)
        return _forbid(log_probs, is_repeat & (progress.step > 0))

    return apply


def repetition_penalty(penalty: float | Float[Array, ""]) -> Constraint:
    """Multiplies the log-probability of tokens already in the caption by `penalty`, which must be at least 1.

    Adapted from CTRL (Keskar et al., 2019, https://arxiv.org/abs/1909.05858), which scales logits. Scaling
    log-probabilities instead makes the effect independent of a constant offset in the logits.
    """

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        is_generated = jnp.arange(progress.tokens.shape[-1]) < progress.step
        scaled = jnp.take_along_axis(log_probs, progress.tokens, axis=-1) * penalty
        return _scatter_min(log_probs, progress.tokens, jnp.where(is_generated, scaled, jnp.inf))

    return apply


def _one_hot(token: int, log_probs: LogProbs) -> jax.Array:
    return jnp.arange(log_probs.shape[-1]) == token


def _multi_hot(ids: np.ndarray, log_probs: LogProbs) -> np.ndarray:
    return np.isin(np.arange(log_probs.shape[-1]), ids)


def _forbid(log_probs: LogProbs, tokens: jax.Array) -> LogProbs:
    return jnp.where(tokens, -jnp.inf, log_probs)


def _scatter_min(log_probs: LogProbs, ids: jax.Array, values: jax.Array) -> LogProbs:
    """Lowers the entries at `ids` of each row to `values` where these are smaller."""
    scatter_rows = jax.vmap(lambda row, ids, values: row.at[ids].min(values))
    return jax.vmap(scatter_rows)(log_probs, ids, values)
