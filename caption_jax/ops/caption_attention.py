"""Attention of captions in packed rows: of each caption to itself, and to the memory of its image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.ops.attend import MASKED, attend
from caption_jax.ops.segments import Segments

Joined = Float[Array, "*rows tokens 3 heads depth"]
Queries = Float[Array, "*rows tokens heads depth"]
Keys = Float[Array, "images heads depth slots"]
Values = Float[Array, "images heads slots depth"]
Mixed = Float[Array, "*rows tokens width"]
Weights = Float[Array, "*rows heads tokens slots"]


def caption_attention_reference(qkv: Joined, segments: Segments) -> Mixed:
    """Causal self-attention: a token looks at itself and at those before it in its caption.

    Args:
        qkv: projected queries, keys and values.
        segments: of the tokens.

    Returns:
        The mixed values, heads joined, in the dtype of `qkv`. Those of padding mean nothing.
    """
    queries, keys, values = jnp.moveaxis(qkv, -3, 0)
    ids, positions = segments.segment_ids, segments.positions
    visible = (ids[..., :, None] == ids[..., None, :]) & (positions[..., :, None] >= positions[..., None, :])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[..., None, :, :], scores, MASKED), axis=-1)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights.astype(values.dtype), values)
    return mixed.reshape(*mixed.shape[:-2], -1)


def memory_attention_reference(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "images slots"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Mixed, Weights]:
    """Attention of each token to the memory of its caption's image.

    Args:
        queries: projected queries.
        keys: projected keys of the memories; images have as many captions each, in order.
        values: projected values of the memories.
        mask: True for slots that count; None for all.
        segments: of the tokens.
        decoding: whether this is a step of decoding: few targets, no gradient. The result does not depend on it.

    Returns:
        The mixed values, heads joined, in the dtype of `values`; and the weights in float32.
    """
    del decoding
    images = jnp.broadcast_to(segments.image_ids(len(keys)), queries.shape[:-2])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...hd,...hdn->...hn", queries, keys[images], preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[images][..., None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("...hn,...hnd->...hd", weights.astype(values.dtype), values[images])
    return mixed.reshape(*mixed.shape[:-2], -1), jnp.swapaxes(weights, -3, -2)


def caption_attention(qkv: Joined, segments: Segments) -> Mixed:
    """`caption_attention_reference`, caption by caption: tokens are moved to [captions, length] and back.

    A row of a CPU's batch holds all captions of all images: of the scores between its tokens nearly all are masked.
    Measured there, with the gradient: 34.
    """
    qkv = segments.to_captions(qkv)
    queries, keys, values = (qkv[:, :, part] for part in range(3))
    causal = jnp.tril(jnp.ones((1, 1, segments.length, segments.length), bool))
    mixed, _ = attend(queries, keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2), causal)
    return segments.to_rows(mixed)


def memory_attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "images slots"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Mixed, Weights]:
    """`memory_attention_reference` with the captions of an image side by side as targets of one product.

    The memory's keys and values exist once per image, and are read once. Measured, with the gradient: 9.4.
    """
    queries = segments.to_captions(queries)
    queries = queries.reshape(len(keys), -1, *queries.shape[2:])
    mask = None if mask is None else mask[:, None, None, :]
    mixed, weights = attend(queries, keys, values, mask, decoding=decoding)
    weights = weights.swapaxes(1, 2)
    mixed, weights = (
        segments.to_rows(x.reshape(segments.captions, segments.length, *x.shape[2:])) for x in (mixed, weights)
    )
    return mixed, jnp.swapaxes(weights, -3, -2)
