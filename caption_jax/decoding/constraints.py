"""What captions may say: small functions on log-probabilities, to be combined in any order.

A constraint is called at each step with the next token's log-probabilities and the tokens so far, and returns
log-probabilities: -inf forbids a token, less makes it less welcome. Nothing is renormalised: under constraints that
only forbid, beam search looks for the captions that are likeliest under the model among those allowed. A constraint
may not return more than 0: the search stops when no continuation can win, and relies on scores that never rise.

Example:
    `[min_length(5, eos_id=2), no_repeat_ngram(3), banned_endings([[17], [23]], eos_id=2)]` asks for captions of at
    least three tokens between <s> and </s>, no three in a row twice, not ending in token 17 or 23. At step 0 with
    log-probabilities `[-9, -9, -1.2, -1.6, -0.7]` the first makes them `[-9, -9, -inf, -1.6, -0.7]`: `</s>` must wait.
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
    """The captions so far.

    Attributes:
        tokens: ids after <s>; from `step` on they mean nothing.
        step: how many tokens there are.
    """

    tokens: Int[Array, "batch rows length"]
    step: Int[Array, ""]

    def last(self, count: int) -> Int[Array, "batch rows count"]:
        """The last `count` tokens; means something where `step >= count`."""
        return jax.lax.dynamic_slice_in_dim(self.tokens, jnp.maximum(self.step - count, 0), count, axis=-1)

    def stands(self, ids: Sequence[int]) -> Bool[Array, "batch rows"]:
        """Whether these ids (at most `length`) are the last tokens."""
        return (self.last(len(ids)) == np.asarray(ids, np.int32)).all(-1) & (self.step >= len(ids))


Constraint = Callable[[LogProbs, Progress], LogProbs]


def constrain(constraints: Sequence[Constraint], log_probs: LogProbs, progress: Progress) -> LogProbs:
    """Applies constraints one after the other."""
    for constraint in constraints:
        log_probs = constraint(log_probs, progress)
    return log_probs


def min_length(tokens: int | jax.Array, *, eos_id: int) -> Constraint:
    """No caption of fewer than `tokens` tokens, <s> and </s> included."""

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        ended_now = progress.step + 2
        return _forbid(log_probs, _one(eos_id, log_probs) & (ended_now < tokens))

    return apply


def max_length(tokens: int | jax.Array | None = None, *, eos_id: int) -> Constraint:
    """Every caption ends after at most `tokens` tokens, <s> and </s> included: </s> is forced where it must come.

    None stands for the limit of the decoding method, which by itself cuts captions off, without </s>.
    """

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        ended_now = progress.step + 2
        most = progress.tokens.shape[-1] + 1 if tokens is None else tokens
        return _forbid(log_probs, ~_one(eos_id, log_probs) & (ended_now >= most))

    return apply


def banned_tokens(ids: Sequence[int]) -> Constraint:
    """No caption holds any of these tokens."""
    ids = np.asarray(ids, np.int32)

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        return _forbid(log_probs, _any_of(ids, log_probs))

    return apply


def banned_phrases(phrases: Sequence[Sequence[int]]) -> Constraint:
    """No caption holds any of these token sequences."""
    phrases = [np.asarray(phrase, np.int32) for phrase in phrases if len(phrase)]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        for phrase in phrases:
            if len(phrase) <= progress.tokens.shape[-1]:
                begun = progress.stands(phrase[:-1])
                log_probs = _forbid(log_probs, _one(int(phrase[-1]), log_probs) & begun[..., None])
        return log_probs

    return apply


def banned_endings(endings: Sequence[Sequence[int]], *, eos_id: int) -> Constraint:
    """No caption ends in any of these token sequences, be it at </s> or at the length limit."""
    endings = [np.asarray(ending, np.int32) for ending in endings if len(ending)]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length = progress.tokens.shape[-1]
        final = progress.step == length - 1
        for ending in endings:
            if len(ending) > length:
                continue
            log_probs = _forbid(log_probs, _one(eos_id, log_probs) & progress.stands(ending)[..., None])
            # At the limit the next token is the last, so it may not complete the ending.
            begun = final & progress.stands(ending[:-1])
            log_probs = _forbid(log_probs, _one(int(ending[-1]), log_probs) & begun[..., None])
        return log_probs

    return apply


def required_prefix(ids: Int[Array, "*images length"] | Sequence[int]) -> Constraint:
    """Every caption begins with these tokens: one prefix for all images, or one each, shorter ones filled with -1."""
    ids = jnp.asarray(ids, jnp.int32)
    ids = ids if ids.ndim == 2 else ids[None]

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        if ids.shape[1] == 0:
            return log_probs
        at = jnp.minimum(progress.step, ids.shape[1] - 1)
        wanted = jax.lax.dynamic_index_in_dim(ids, at, axis=1)[:, :, None]  # [images or 1, 1, 1]
        asked = (wanted >= 0) & (progress.step < ids.shape[1])
        return _forbid(log_probs, asked & (jnp.arange(log_probs.shape[-1]) != wanted))

    return apply


def no_repeat_ngram(size: int) -> Constraint:
    """No caption holds the same `size` tokens in a row twice (Paulus et al., 2017, https://arxiv.org/abs/1705.04304)."""
    if size < 1:
        raise ConfigError(f"no_repeat_ngram of size {size}; the size must be at least 1")

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        length = progress.tokens.shape[-1]
        starts = length - size + 1
        if starts < 1:
            return log_probs
        repeated = jnp.arange(starts) + size - 1 < progress.step  # n-grams that are complete
        if size > 1:
            context = progress.last(size - 1)
            windows = [progress.tokens[..., i : i + starts] == context[..., i : i + 1] for i in range(size - 1)]
            repeated = repeated & jnp.stack(windows).all(0)
        repeated = jnp.broadcast_to(repeated, (*log_probs.shape[:2], starts))
        return _scatter_min(log_probs, progress.tokens[..., size - 1 :], jnp.where(repeated, -jnp.inf, jnp.inf))

    return apply


def no_double_tokens() -> Constraint:
    """No token stands directly after itself, as in "a large large dog"; words of several tokens may."""

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        doubled = jnp.arange(log_probs.shape[-1]) == progress.last(1)
        return _forbid(log_probs, doubled & (progress.step > 0))

    return apply


def repetition_penalty(penalty: float | jax.Array) -> Constraint:
    """Multiplies the log-probability of tokens that the caption already holds by `penalty`, 1 or more.

    After Keskar et al., 2019 (CTRL, https://arxiv.org/abs/1909.05858), who scale logits, on which the effect depends on
    where the logits happen to have their zero; log-probabilities have a true one.
    """

    def apply(log_probs: LogProbs, progress: Progress) -> LogProbs:
        said = jnp.arange(progress.tokens.shape[-1]) < progress.step
        scaled = jnp.take_along_axis(log_probs, progress.tokens, axis=-1) * penalty
        return _scatter_min(log_probs, progress.tokens, jnp.where(said, scaled, jnp.inf))

    return apply


def _one(token: int, log_probs: LogProbs) -> jax.Array:
    return jnp.arange(log_probs.shape[-1]) == token


def _any_of(ids: np.ndarray, log_probs: LogProbs) -> np.ndarray:
    return np.isin(np.arange(log_probs.shape[-1]), ids)


def _forbid(log_probs: LogProbs, tokens: jax.Array) -> LogProbs:
    return jnp.where(tokens, -jnp.inf, log_probs)


def _scatter_min(log_probs: LogProbs, ids: jax.Array, values: jax.Array) -> LogProbs:
    """The smaller of what stands and `values`, at `ids` of each row."""
    row = jax.vmap(lambda row, ids, values: row.at[ids].min(values))
    return jax.vmap(row)(log_probs, ids, values)
