"""What a decoder remembers between steps, laid out so that beams change places without moving keys or values.

All rows (beams, draws) of an image share one pool of slots: slot (step, row) holds the key and value that row computed
at that step, and stays where it was written. A small table, `ancestors[image, row, step]`, names the row whose slot is
this row's past at that step. Reordering beams reorders the table (a few bytes a step) and copies no key or value, where
gathering per-row caches would copy all of them, in each layer, at each step. The price is that a row's scores are
computed against the slots of its siblings too, and masked; the rows of an image then form one matrix product over keys
read once, which is no slower than a product per row over keys of its own.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer. Slots are step-major: slot = step * rows + row."""

    keys: Float[Array, "batch slots heads depth"]
    values: Float[Array, "batch slots heads depth"]
    memory_keys: Float[Array, "batch memory heads depth"]
    memory_values: Float[Array, "batch memory heads depth"]


class Cache(flax.struct.PyTreeNode):
    """State of step-by-step decoding of `rows` captions an image.

    Attributes:
        layers: keys and values, a layer each.
        ancestors: row whose slot holds this row's past at a step.
        position: number of tokens decoded so far; the same for all rows.
        memory_mask: True for memory slots that may be attended to; None for all.
    """

    layers: tuple[LayerCache, ...]
    ancestors: Int[Array, "batch rows steps"]
    position: Int[Array, ""]
    memory_mask: Bool[Array, "batch memory"] | None

    def visible_slots(self, length: int) -> Bool[Array, "batch rows length slots"]:
        """Which slots each of `length` new tokens may look at: its own past and the new tokens up to itself."""
        batch, rows, steps = self.ancestors.shape
        step = jnp.arange(steps)
        reached = step <= self.position + jnp.arange(length)[:, None]
        mine = self.ancestors[:, :, None, :, None] == jnp.arange(rows)
        return (mine & reached[:, :, None]).reshape(batch, rows, length, steps * rows)

    def reorder(self, parents: Int[Array, "batch rows"]) -> Cache:
        """The cache after row i of an image has become a continuation of its row `parents[image, i]`."""
        rows, steps = self.ancestors.shape[1:]
        past = jnp.take_along_axis(self.ancestors, parents[:, :, None], axis=1)
        own = jnp.arange(rows, dtype=past.dtype)[:, None]
        return self.replace(ancestors=jnp.where(jnp.arange(steps) < self.position, past, own))


def empty_cache(
    memory: tuple[tuple[jax.Array, jax.Array], ...],
    memory_mask: Bool[Array, "batch memory"] | None,
    rows: int,
    length: int,
) -> Cache:
    """A cache for `length` steps of `rows` captions an image, given each layer's projected memory."""

    def layer(keys: jax.Array, values: jax.Array) -> LayerCache:
        batch, _, heads, depth = keys.shape
        empty = jnp.zeros((batch, length * rows, heads, depth), keys.dtype)
        return LayerCache(keys=empty, values=empty, memory_keys=keys, memory_values=values)

    batch = memory[0][0].shape[0]
    own = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (batch, rows, length))
    return Cache(tuple(layer(*pair) for pair in memory), own, jnp.zeros((), jnp.int32), memory_mask)


def write_rows(
    slots: Float[Array, "batch slots heads depth"],
    new: Float[Array, "batch rows length heads depth"],
    position: Int[Array, ""],
) -> Float[Array, "batch slots heads depth"]:
    """Writes the keys or values of `length` steps from `position` on."""
    batch, rows, length, heads, depth = new.shape
    flat = new.swapaxes(1, 2).reshape(batch, length * rows, heads, depth).astype(slots.dtype)
    return jax.lax.dynamic_update_slice(slots, flat, (0, position * rows, 0, 0))
