"""Self-attention of captions in packed rows, and their cross-attention to the memory of the image."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.ops.attend import MASKED, attend
from caption_jax.ops.segments import Segments
from caption_jax.ops.token_chunks import TokenChunks

QKV = Float[Array, "*rows tokens 3 heads depth"]
Queries = Float[Array, "*rows tokens heads depth"]
Keys = Float[Array, "memories heads depth memory"]
Values = Float[Array, "memories heads memory depth"]
Output = Float[Array, "*rows tokens width"]
Weights = Float[Array, "*rows heads tokens memory"]


def caption_attention_reference(qkv: QKV, segments: Segments) -> Output:
    """Causal self-attention. Each token attends to itself and the preceding tokens of its caption.

    Args:
        qkv: projected queries, keys and values.
        segments: segments of the tokens.

    Returns:
        The attention output with heads concatenated, in the dtype of `qkv`; undefined for padding.
    """
    queries, keys, values = jnp.moveaxis(qkv, -3, 0)
    ids, positions = segments.segment_ids, segments.positions
    visible = (ids[..., :, None] == ids[..., None, :]) & (positions[..., :, None] >= positions[..., None, :])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[..., None, :, :], scores, MASKED), axis=-1)
    output = jnp.einsum("...hqk,...khd->...qhd", weights.astype(values.dtype), values)
    return output.reshape(*output.shape[:-2], -1)


def memory_attention_reference(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "memories memory"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Output, Weights]:
    """Cross-attention of each token to the memory of its caption's image.

    Args:
        queries: projected queries.
        keys: projected keys of the memory of each image, or of each block (see `Segments.to_memories`).
        values: projected values, like `keys`.
        mask: True for memory positions to attend to; all positions if None.
        segments: segments of the tokens.
        decoding: whether this is a decoding step, with few targets and no gradient. Does not affect the result.

    Returns:
        The attention output with heads concatenated, in the dtype of `values`, and the attention weights in float32.
    """
    del decoding
    memory_ids = jnp.broadcast_to(segments.memory_ids(keys.shape[0]), queries.shape[:-2])
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("...hd,...hdn->...hn", queries, keys[memory_ids], preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[memory_ids][..., None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    output = jnp.einsum("...hn,...hnd->...hd", weights.astype(values.dtype), values[memory_ids])
    return output.reshape(*output.shape[:-2], -1), jnp.swapaxes(weights, -3, -2)


def caption_attention(qkv: QKV, segments: Segments) -> Output:
    """`caption_attention_reference`, computed per block, or else per caption.

    Without blocks, tokens are moved to [captions, length] and back. On a CPU, all captions of a batch are packed into
    one row, so nearly all scores are between different captions. This function does not compute those, so it is 27
    times as fast as the reference on a CPU, forward and backward. On a TPU, blocks are processed in chunks.
    """
    if segments.block_length is not None:
        arrays = (segments.to_blocks(x) for x in (qkv, segments.segment_ids))
        in_chunks = functools.partial(_attend_in_chunks, shards=math.prod(segments.row_shape))
        return segments.from_blocks(jax.lax.platform_dependent(*arrays, tpu=in_chunks, default=_attend_in_blocks))
    qkv = segments.to_captions(qkv)
    causal = jnp.tril(jnp.ones((1, 1, segments.length, segments.length), bool))
    return segments.to_rows(_attend_within(qkv, causal))


def _attend_within(
    qkv: Float[Array, "groups tokens 3 heads depth"], visible: Bool[Array, "#groups 1 tokens tokens"]
) -> Float[Array, "groups tokens width"]:
    queries, keys, values = (qkv[:, :, i] for i in range(3))
    return attend(queries, keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2), visible)[0]


def _attend_in_blocks(
    qkv: Float[Array, "blocks tokens 3 heads depth"], segment_ids: Int[Array, "blocks tokens"]
) -> Float[Array, "blocks tokens width"]:
    """Causal self-attention within each caption of each block."""
    causal = jnp.tril(jnp.ones(segment_ids.shape[-1:] * 2, bool))
    is_same = segment_ids[:, :, None] == segment_ids[:, None, :]  # the tokens of a caption are consecutive
    return _attend_within(qkv, (is_same & causal)[:, None])


_CHUNK_SIZE = 32  # blocks per chunk and device


def _attend_in_chunks(
    qkv: Float[Array, "blocks tokens 3 heads depth"], segment_ids: Int[Array, "blocks tokens"], shards: int
) -> Float[Array, "blocks tokens width"]:
    """`_attend_in_blocks` in chunks, whose scores fit in the on-chip memory of a TPU.

    The scores are computed again in the backward pass instead of stored. `shards` is the number of devices.
    """
    chunks = TokenChunks((len(qkv),), _CHUNK_SIZE, shards)

    @jax.checkpoint
    def attend_chunk(chunk: tuple[Array, Array]) -> Array:
        output = _attend_in_blocks(*(x.reshape(-1, *x.shape[len(chunks.axes) :]) for x in chunk))
        return output.reshape(*chunks.axes, *output.shape[1:])

    return chunks.merge(jax.lax.map(attend_chunk, (chunks.split(qkv), chunks.split(segment_ids))))


def memory_attention(
    queries: Queries,
    keys: Keys,
    values: Values,
    mask: Bool[Array, "memories memory"] | None,
    segments: Segments,
    *,
    decoding: bool = False,
) -> tuple[Output, Weights]:
    """`memory_attention_reference`, with one matrix product for all tokens that attend to a memory.

    The keys and values of the memory are stored and read once per image. On a CPU, this is 9.8 times as fast as the
    reference, forward and backward.
    """
    mask = None if mask is None else mask[:, None, None, :]
    if segments.block_length is None:
        queries = segments.to_captions(queries)
        queries = queries.reshape(keys.shape[0], -1, *queries.shape[2:])
    else:
        queries = segments.to_blocks(queries)
    output, weights = attend(queries, keys, values, mask, decoding=decoding)
    weights = weights.swapaxes(1, 2)
    if segments.block_length is None:
        output, weights = (
            segments.to_rows(x.reshape(segments.num_captions, segments.length, *x.shape[2:])) for x in (output, weights)
        )
    else:
        output, weights = segments.from_blocks(output), segments.from_blocks(weights)
    return output, jnp.swapaxes(weights, -3, -2)
