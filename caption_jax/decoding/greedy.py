"""Greedy decoding: the likeliest token at each step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.decoding.decoded import Decoded
from caption_jax.models.cache import Cache
from caption_jax.models.captioning import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures

PyTree = Any


class _State(NamedTuple):
    step: Int[Array, ""]
    cache: Cache
    last: Int[Array, " batch"]
    ended: Bool[Array, " batch"]
    tokens: Int[Array, "batch length"]
    log_probs: Float[Array, "batch length"]
    attention: Float[Array, "batch length memory"] | None


def greedy(
    model: ImageCaptioningModel,
    variables: PyTree,
    features: ImageFeatures | Float[Array, "batch memory width"],
    *,
    max_length: int,
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    bos_id: int = 0,
    eos_id: int = 2,
    pad_id: int = 1,
) -> Decoded:
    """Takes the likeliest token at each step, in one loop that stops when every caption has ended.

    Can be traced by `jax.jit`. Ties go to the smaller id.

    Args:
        model: the captioner.
        variables: its `params` (and whatever else it holds).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory.
        max_length: most tokens of a caption, <s> and </s> included; the decoder's own limit also holds.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id that fills up ended captions.

    Example:
        With logits that favour "a", "cat", </s> in turn, whatever came before, and `max_length=6`:
        `tokens == [[a, cat, </s>, <pad>, <pad>]]`, `token_log_probs[0] == [log p(a), log p(cat), log p(</s>), 0, 0]`
        and `log_prob == [their sum]`; the loop ran three steps.
    """
    length = min(max_length, model.decoder.max_length) - 1
    cache = model.apply(variables, features, memory_mask=memory_mask, length=length, method="start_cache")
    batch, memory_slots = cache.layers[0].memory_keys.shape[:2]
    start = _State(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        last=jnp.full((batch,), bos_id, jnp.int32),
        ended=jnp.zeros((batch,), bool),
        tokens=jnp.full((batch, length), pad_id, jnp.int32),
        log_probs=jnp.zeros((batch, length)),
        attention=jnp.zeros((batch, length, memory_slots)) if return_attention else None,
    )

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < length) & ~state.ended.all()

    def advance(state: _State) -> _State:
        output = model.apply(
            variables, state.last[:, None, None], cache=state.cache, return_attention=return_attention, method="decode"
        )
        logits = output.logits[:, 0, 0]
        token = jnp.where(state.ended, pad_id, logits.argmax(-1).astype(jnp.int32))
        log_prob = jnp.where(state.ended, 0.0, logits.max(-1) - jax.nn.logsumexp(logits, axis=-1))
        attention = state.attention
        if return_attention:
            looked = output.attention.mean((0, 3))[:, 0, 0]  # over layers and heads
            attention = attention.at[:, state.step].set(jnp.where(state.ended[:, None], 0.0, looked))
        return _State(
            step=state.step + 1,
            cache=output.cache,
            last=token,
            ended=state.ended | (token == eos_id),
            tokens=state.tokens.at[:, state.step].set(token),
            log_probs=state.log_probs.at[:, state.step].set(log_prob),
            attention=attention,
        )

    end = jax.lax.while_loop(unfinished, advance, start)
    return Decoded(end.tokens, end.log_probs.sum(-1), end.log_probs, end.attention)
