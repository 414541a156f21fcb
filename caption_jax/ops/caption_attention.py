"""Attention of captions in packed rows: self-attention, and cross-attention to the memory of the image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.ops.attend import MASKED, attend
from caption_jax.ops.segments import Segments

QKV = Float[Array, "*rows tokens 3 heads depth"]
Queries = Float[Array, "*rows tokens heads depth"]
Keys = Float[Array, "images heads depth memory"]
Values = Float[Array, "images heads memory depth"]
Attended = Float[Array, "*rows tokens width"]
Weights = Float[Array, "*rows heads tokens memory"]


def caption_attention_reference(qkv: QKV, segments: Segments) -> Attended:
    """Causal self-attention: each token attends to itself and the preceding tokens of its caption.

    Args:
        qkv: projected queries, keys and values.
        segments: segments of the tokens.

    Returns:
        The attention output with heads concatenated, in the dtype of `qkv`. It is undefined for padding.
    """
    queries, keys, values = jnp.moveaxis(qkv, -3, 0)
    ids, positions = segments.segment_ids, segments.positions
    visible = (ids[..., :, None] == ids[..., None, :]) & (positions[..., :, None] >= positions[..., None, :])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[..., None, :, :], scores, MASKED), axis=-1)
    attended = jnp.einsum("...hqk,...khd->...qhd", weights.astype(values.dtype), values)
    return attended.reshape(*attended.shape[:-2], -1)


def memory_attention_reference(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "images memory"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Attended, Weights]:
    """Cross-attention of each token to the memory of its caption's image.

    Args:
        queries: projected queries.
        keys: projected keys of the memories. Captions are image-major, and all images have the same number of them.
        values: projected values of the memories.
        mask: True for memory positions to attend to; all of them if None.
        segments: segments of the tokens.
        decoding: whether this is a decoding step, with few targets and no gradient. Does not affect the result.

    Returns:
        The attention output with heads concatenated, in the dtype of `values`, and the attention weights in float32.
    """
    del decoding
    images = jnp.broadcast_to(segments.image_ids(len(keys)), queries.shape[:-2])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...hd,...hdn->...hn", queries, keys[images], preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[images][..., None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    attended = jnp.einsum("...hn,...hnd->...hd", weights.astype(values.dtype), values[images])
    return attended.reshape(*attended.shape[:-2], -1), jnp.swapaxes(weights, -3, -2)


def caption_attention(qkv: QKV, segments: Segments) -> Attended:
    """`caption_attention_reference`, computed per caption: tokens are moved to [captions, length] and back.

    On a CPU, all captions of a batch are packed into one row, and nearly all scores between its tokens are masked.
    Skipping these gives a speedup of 34, including the gradient.
    """
    qkv = segments.to_captions(qkv)
    queries, keys, values = (qkv[:, :, part] for part in range(3))
    causal = jnp.tril(jnp.ones((1, 1, segments.length, segments.length), bool))
    attended, _ = attend(queries, keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2), causal)
    return segments.to_rows(attended)


def memory_attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "images memory"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Attended, Weights]:
    """`memory_attention_reference` with all captions of an image as targets of one matrix product.

    The keys and values of the memory are stored and read once per image. Speedup, including the gradient: 9.4.
    """
    queries = segments.to_captions(queries)
    queries = queries.reshape(len(keys), -1, *queries.shape[2:])
    mask = None if mask is None else mask[:, None, None, :]
    attended, weights = attend(queries, keys, values, mask, decoding=decoding)
    weights = weights.swapaxes(1, 2)
    attended, weights = (
        segments.to_rows(x.reshape(segments.captions, segments.length, *x.shape[2:])) for x in (attended, weights)
    )
    return attended, jnp.swapaxes(weights, -3, -2)
