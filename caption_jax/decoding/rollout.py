"""Token-by-token generation of independent captions, used by greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.decoding.constraints import Constraint, LogProbs, Progress, constrain
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.predictor import Predictor
from caption_jax.models.cache import Cache

# Selects one token per row, given the constrained log-probabilities and the step.
SelectToken = Callable[[LogProbs, Int[Array, ""]], Int[Array, "batch rows"]]


class _State(NamedTuple):
    step: Int[Array, ""]
    caches: tuple[Cache, ...]
    last_tokens: Int[Array, "batch rows"]
    finished: Bool[Array, "batch rows"]
    stuck: Bool[Array, "batch rows"]
    tokens: Int[Array, "batch rows length"]
    log_probs: Float[Array, "batch rows length"]


def roll_out(
    predictor: Predictor,
    select_token: SelectToken,
    *,
    rows: int,
    max_length: int,
    constraints: Sequence[Constraint],
    bos_id: int,
    eos_id: int,
    pad_id: int,
) -> Decoded:
    """Generates `rows` captions per image in one loop that stops once all captions are finished.

    If the constraints allow no token for a caption, it is discarded and replaced by padding with score -inf.
    """
    length, shape = predictor.limit_length(max_length), (predictor.batch_size, rows)
    initial = _State(
        step=jnp.zeros((), jnp.int32),
        caches=predictor.start_caches(rows, groups=rows, length=length),
        last_tokens=jnp.full(shape, bos_id, jnp.int32),
        finished=jnp.zeros(shape, bool),
        stuck=jnp.zeros(shape, bool),
        tokens=jnp.full((*shape, length), pad_id, jnp.int32),
        log_probs=jnp.zeros((*shape, length)),
    )

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < length) & ~state.finished.all()

    def advance(state: _State) -> _State:
        logits, caches = predictor.step(state.last_tokens, state.caches)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        constrained_log_probs = logits - log_normaliser[..., None]
        if constraints:
            constrained_log_probs = constrain(constraints, constrained_log_probs, Progress(state.tokens, state.step))
        token = select_token(constrained_log_probs, state.step).astype(jnp.int32)
        stuck = state.stuck | (~state.finished & jnp.isneginf(_gather_log_probs(constrained_log_probs, token)))
        token = jnp.where(state.finished | stuck, pad_id, token)
        log_prob = jnp.where(state.finished, 0.0, _gather_log_probs(logits, token) - log_normaliser)
        return _State(
            step=state.step + 1,
            caches=caches,
            last_tokens=token,
            finished=state.finished | stuck | (token == eos_id),
            stuck=stuck,
            tokens=state.tokens.at[:, :, state.step].set(token),
            log_probs=state.log_probs.at[:, :, state.step].set(log_prob),
        )

    final = jax.lax.while_loop(is_unfinished, advance, initial)
    is_stuck = final.stuck[..., None]
    log_probs = jnp.where(is_stuck, 0.0, final.log_probs)
    scores = jnp.where(final.stuck, -jnp.inf, log_probs.sum(-1))
    return Decoded(jnp.where(is_stuck, pad_id, final.tokens), log_probs, scores)


def _gather_log_probs(log_probs: LogProbs, token: Int[Array, "batch rows"]) -> Float[Array, "batch rows"]:
    return jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
