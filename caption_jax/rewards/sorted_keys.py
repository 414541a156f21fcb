"""Lookup of 64-bit keys in a sorted table on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from caption_jax.rewards.word_keys import as_integers

_LARGEST = np.full((1, 2), np.iinfo(np.uint32).max, np.uint32)


def sort_keys(keys: UInt32[np.ndarray, "keys 2"]) -> Int[np.ndarray, " keys"]:
    """Returns the order in which `find_keys` requires the keys, on the host."""
    return np.argsort(as_integers(keys), kind="stable")


def never_empty(keys: UInt32[np.ndarray, "keys 2"]) -> UInt32[np.ndarray, "entries 2"]:
    """Returns the keys, or one key that no text has if there are none, because no index fits an empty table."""
    return keys if len(keys) else _LARGEST


def find_keys(
    table: UInt32[Array, "keys 2"], queries: UInt32[Array, "*shape 2"]
) -> tuple[Int[Array, "*shape"], Bool[Array, "*shape"]]:
    """Finds queries in a sorted table of at least one key by binary search.

    Returns:
        The index of each query in the table, and whether it is there; otherwise the index is that of another key.
    """
    size = table.shape[0]
    first, second = queries[..., 0], queries[..., 1]

    def is_less(index: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        key = table[index]
        return (key[..., 0] < first) | ((key[..., 0] == first) & (key[..., 1] < second))

    def advance(i: Int[Array, ""], below: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Adds the i-th bit, from the highest, to the number of keys below the query."""
        larger = below + (1 << (size.bit_length() - 1 - i))
        is_valid = (larger <= size) & is_less(jnp.minimum(larger, size) - 1)
        return jnp.where(is_valid, larger, below)

    below = jax.lax.fori_loop(0, size.bit_length(), advance, jnp.zeros(queries.shape[:-1], jnp.int32))
    index = jnp.minimum(below, size - 1)
    return index, (table[index] == queries).all(-1)
