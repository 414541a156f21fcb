"""Dropout (Srivastava et al., 2014) with masks that depend on the key and on row ids, not on the layout of the rows."""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p, threefry_2x32
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from caption_jax.ops.token_chunks import TokenChunks

Bits = Literal[8, 16]


def dropout_reference(
    key: Key[Array, ""],
    x: Float[Array, "*rows width"],
    rate: float,
    ids: Int[Array, "*rows"] | None = None,
    bits: Bits = 8,
) -> Float[Array, "*rows width"]:
    """Sets random elements of `x` to 0 and scales up the others to preserve the mean.

    Each 64-bit output block of Threefry (Salmon et al., 2011) covers 64 / `bits` elements. The rate is therefore
    rounded to a multiple of 2 ** -bits, but never to 0 or 1. With 8 bits, 0.1 becomes 26 / 256; with 16 bits, the error
    is at most 2 ** -17. The scale matches the rounded rate. The counters encode the row id and the column, so the mask
    of a row does not depend on the position of the row or on the sharding of the array.

    Args:
        key: PRNG key of this mask.
        x: input array.
        rate: fraction of the elements to set to 0, in (0, 1).
        ids: ids of the rows of `x`. If None, the rows are numbered in order.
        bits: random bits per element, 8 or 16.
    """
    *rows, width = x.shape
    key_words, counters = _get_key_words(key), _make_counters(rows, width, ids, bits)
    blocks = counters[0].shape[-1]
    words = threefry_2x32(key_words, jnp.concatenate([counter.ravel() for counter in counters]))
    words = words.reshape(2, *rows, blocks, 1) >> (bits * jnp.arange(32 // bits, dtype=jnp.uint32))
    samples = jnp.concatenate([word.reshape(*rows, -1) for word in words % 2**bits], axis=-1)[..., :width]
    threshold = _compute_threshold(rate, bits)
    return jnp.where(samples < threshold, 0, x * jnp.asarray(2**bits / (2**bits - threshold), x.dtype))


def dropout(
    key: Key[Array, ""],
    x: Float[Array, "*rows width"],
    rate: float,
    ids: Int[Array, "*rows"] | None = None,
    bits: Bits = 8,
) -> Float[Array, "*rows width"]:
    """`dropout_reference`, with a bitcast instead of arithmetic to split the random bits into elements.

    On a CPU, this is 3.6 times as fast as a mask from `jax.random.bernoulli`, which generates 32 bits per element.
    Masks with 16 bits take 2.2 times as long as masks with 8 bits, the default. The backward pass reads the mask, one
    byte per element, because generating it again would read and write more bytes. On a TPU, masks are generated in
    chunks (docs/performance.md).
    """
    if ids is None:
        ids = jnp.arange(math.prod(x.shape[:-1])).reshape(x.shape[:-1])
    implementations = {
        name: functools.partial(make_mask, width=x.shape[-1], rate=rate, bits=bits)
        for name, make_mask in {"tpu": _make_mask_in_chunks, "default": _make_mask}.items()
    }
    mask = jax.lax.platform_dependent(_get_key_words(key), ids, **implementations)
    scale = jnp.asarray(2**bits / (2**bits - _compute_threshold(rate, bits)), x.dtype)
    return jnp.where(mask, x * scale, jnp.zeros((), x.dtype))


_CHUNK_SIZE = 1024  # positions per chunk, along the last axis of the ids, which is not sharded


def _make_mask_in_chunks(
    key_words: UInt32[Array, "2"], ids: Int[Array, "*rows"], width: int, rate: float, bits: Bits
) -> Bool[Array, "*rows width"]:
    """`_make_mask` in chunks of positions, whose intermediate results fit in the on-chip memory of a TPU.

    Threefry has too many operations for a single fusion, and the words between two fusions are larger than the mask.
    """
    make_mask = functools.partial(_make_mask, key_words, width=width, rate=rate, bits=bits)
    if not ids.ndim or ids.shape[-1] <= _CHUNK_SIZE:
        return make_mask(ids)
    groups = ids.reshape(-1, ids.shape[-1])
    chunks = TokenChunks(groups.shape, _CHUNK_SIZE, shards=len(groups))
    return chunks.merge(jax.lax.map(make_mask, chunks.split(groups))).reshape(*ids.shape, width)


def _make_mask(
    key_words: UInt32[Array, "2"], ids: Int[Array, "*rows"], width: int, rate: float, bits: Bits
) -> Bool[Array, "*rows width"]:
    """Returns True for the elements to keep.

    The primitive is called directly because `threefry_2x32` takes both counters as one array, and devices would have to
    exchange halves of that array.
    """
    counters = _make_counters(ids.shape, width, ids, bits)
    words = threefry2x32_p.bind(*(jnp.full(counters[0].shape, word) for word in key_words), *counters)
    dtype = {8: jnp.uint8, 16: jnp.uint16}[bits]
    samples = [jax.lax.bitcast_convert_type(word, dtype).reshape(*ids.shape, -1) for word in words]
    return jnp.concatenate(samples, axis=-1)[..., :width] >= _compute_threshold(rate, bits)


def _get_key_words(key: Key[Array, ""]) -> UInt32[Array, "2"]:
    return jax.random.bits(key, (2,), jnp.uint32)


def _make_counters(
    rows: list[int], width: int, ids: Int[Array, "*rows"] | None, bits: Bits
) -> tuple[UInt32[Array, "*rows blocks"], UInt32[Array, "*rows blocks"]]:
    """Returns the two words of the Threefry counters, the row id and the index of a block of columns."""
    if ids is None:
        ids = jnp.arange(math.prod(rows)).reshape(rows)
    blocks = jnp.arange(-(-width * bits // 64), dtype=jnp.uint32)
    row_ids, column_blocks = jnp.broadcast_arrays(ids[..., None].astype(jnp.uint32), blocks)
    return row_ids, column_blocks


def _compute_threshold(rate: float, bits: Bits) -> int:
    """Returns the threshold in [1, 2 ** bits - 1] below which a random sample drops its element."""
    return min(max(round(rate * 2**bits), 1), 2**bits - 1)
