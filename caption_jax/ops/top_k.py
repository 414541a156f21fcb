"""The k largest of many values, and their indices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Values = Float[Array, "*rows num_values"]
Largest = tuple[Float[Array, "*rows k"], Int[Array, "*rows k"]]

_BLOCK_SIZE = 32


def top_k_reference(values: Values, k: int) -> Largest:
    """Returns the `k` largest values of each row in descending order, and their indices. Lower indices win ties."""
    return tuple(jax.lax.top_k(values, k))


def top_k(values: Values, k: int) -> Largest:
    """`top_k_reference`, computed in blocks if there are many values, to avoid sorting all of them on a CPU.

    The `k` largest values are in the `k` blocks with the largest maxima. On a CPU, this is 1.08 times as fast as the
    reference for 5 of 10,000 values.
    """
    num_values = values.shape[-1]
    if num_values < 8 * k * _BLOCK_SIZE:
        return tuple(jax.lax.top_k(values, k))
    end = num_values - num_values % _BLOCK_SIZE  # end of the last complete block
    maxima = values[..., :end].reshape(*values.shape[:-1], -1, _BLOCK_SIZE).max(-1)
    # Sort the blocks, so that lower indices win ties.
    blocks = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=-1)
    indices = (blocks[..., None] * _BLOCK_SIZE + jnp.arange(_BLOCK_SIZE)).reshape(*blocks.shape[:-1], -1)
    remainder = jnp.broadcast_to(jnp.arange(end, num_values), (*indices.shape[:-1], num_values - end))
    indices = jnp.concatenate([indices, remainder], axis=-1)
    largest, positions = jax.lax.top_k(jnp.take_along_axis(values, indices, axis=-1), k)
    return largest, jnp.take_along_axis(indices, positions, axis=-1)
