"""Dropout (Srivastava et al., 2014) whose mask depends on the key and on numbered rows, not on their layout."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p, threefry_2x32
from jaxtyping import Array, Float, Int, Key, UInt32

Bits = Literal[8, 16]


def dropout_reference(
    key: Key[Array, ""],
    x: Float[Array, "*rows width"],
    rate: float,
    ids: Int[Array, "*rows"] | None = None,
    bits: Bits = 8,
) -> Float[Array, "*rows width"]:
    """Sets random elements of `x` to 0 and scales the others up, so that the mean stays.

    Each draw of Threefry (Salmon et al., 2011), 64 bits, serves 64 / `bits` elements. The rate is therefore rounded to
    a multiple of 2 ** -bits (with 8 bits 0.1 becomes 26 / 256, with 16 it is exact within 2 ** -17), but not to 0 or 1;
    the scale is that of the rounded rate. A row's draws are numbered by its id and its columns, so its mask is the
    same wherever the row lies and however the array is sharded.

    Args:
        key: of this mask.
        x: the values.
        rate: fraction of the elements to set to 0, above 0 and below 1.
        ids: numbers the rows of `x`; None for their order.
        bits: random bits per element, 8 or 16.
    """
    *rows, width = x.shape
    word, counters = _word(key), _counters(rows, width, ids, bits)
    blocks = counters[0].shape[-1]
    words = threefry_2x32(word, jnp.concatenate([counter.ravel() for counter in counters]))
    words = words.reshape(2, *rows, blocks, 1) >> (bits * jnp.arange(32 // bits, dtype=jnp.uint32))
    draws = jnp.concatenate([half.reshape(*rows, -1) for half in words % 2**bits], axis=-1)[..., :width]
    dropped = _dropped(rate, bits)
    return jnp.where(draws < dropped, 0, x * jnp.asarray(2**bits / (2**bits - dropped), x.dtype))


def dropout(
    key: Key[Array, ""],
    x: Float[Array, "*rows width"],
    rate: float,
    ids: Int[Array, "*rows"] | None = None,
    bits: Bits = 8,
) -> Float[Array, "*rows width"]:
    """`dropout_reference`, whose draws are cut into elements without arithmetic, by a change of type.

    Measured: 2.76 against `jax.random.bernoulli`, which draws 32 bits per element; masks of 16 bits take 2.1 times as
    long as those of 8, hence 8 by default.

    The primitive stands here because `threefry_2x32` has both counters in one array: devices would exchange halves.
    """
    *rows, width = x.shape
    counters = _counters(rows, width, ids, bits)
    words = threefry2x32_p.bind(*(jnp.full(counters[0].shape, word) for word in _word(key)), *counters)
    narrow = {8: jnp.uint8, 16: jnp.uint16}[bits]
    draws = [jax.lax.bitcast_convert_type(word, narrow).reshape(*rows, -1) for word in words]
    dropped = _dropped(rate, bits)
    scale = jnp.asarray(2**bits / (2**bits - dropped), x.dtype)
    return jnp.where(jnp.concatenate(draws, axis=-1)[..., :width] >= dropped, x * scale, jnp.zeros((), x.dtype))


def _word(key: Key[Array, ""]) -> UInt32[Array, 2]:
    return jax.random.bits(key, (2,), jnp.uint32)


def _counters(
    rows: list[int], width: int, ids: Int[Array, "*rows"] | None, bits: Bits
) -> list[UInt32[Array, "*rows blocks"]]:
    """The two halves of each draw's number: row and block of columns."""
    if ids is None:
        ids = jnp.arange(math.prod(rows)).reshape(rows)
    blocks = jnp.arange(-(-width * bits // 64), dtype=jnp.uint32)
    return jnp.broadcast_arrays(ids[..., None].astype(jnp.uint32), blocks)


def _dropped(rate: float, bits: Bits) -> int:
    """Of the 2 ** bits values of an element's draw, how many drop it."""
    return min(max(round(rate * 2**bits), 1), 2**bits - 1)
