"""What a decoder remembers between steps, laid out so that beams change places without moving keys or values.

The rows (beams) of an image share one pool of slots: slot (step, row) holds the key and value that row computed at that
step, and stays where it was written. A small table, `ancestors[image, row, step]`, names the row whose slot is this
row's past at that step. Reordering beams reorders the table (a few bytes a step) and copies no key or value, where
gathering per-row caches would copy all of them, in each layer, at each step. The price is that a row's scores are
computed against the slots of its siblings too, and masked: arithmetic over keys that are read anyway.

Rows that never change places need not pay it: rows are split into `groups` with a pool each. A beam search has as many
groups as it has diverse groups, sampling one for each draw.

Keys are kept as [heads, depth, slots] and values as [heads, slots, depth], the layouts in which one step's products
read them in order; kept as the projections give them, [slots, heads, depth], a step's attention takes twice as long on
a CPU.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer. Slots are step-major: slot = step * rows of a group + row in the group."""

    keys: Float[Array, "pools heads depth slots"]
    values: Float[Array, "pools heads slots depth"]
    memory_keys: Float[Array, "batch heads depth memory"]
    memory_values: Float[Array, "batch heads memory depth"]

    def write(
        self,
        keys: Float[Array, "pools targets heads depth"],
        values: Float[Array, "pools targets heads depth"],
        slot: Int[Array, ""],
    ) -> LayerCache:
        """The cache with new keys and values, of slots in order, from `slot` on."""
        keys = keys.transpose(0, 2, 3, 1).astype(self.keys.dtype)
        values = values.swapaxes(1, 2).astype(self.values.dtype)
        return self.replace(
            keys=jax.lax.dynamic_update_slice(self.keys, keys, (0, 0, 0, slot)),
            values=jax.lax.dynamic_update_slice(self.values, values, (0, 0, slot, 0)),
        )


class Cache(flax.struct.PyTreeNode):
    """State of step-by-step decoding of several captions ("rows") an image.

    A pool serves the rows of one group of one image; pools are image-major.

    Attributes:
        layers: keys and values, a layer each.
        ancestors: row (in its group) whose slot holds this row's past at a step.
        position: number of tokens decoded so far; the same for all rows.
        memory_mask: True for memory slots that may be attended to; None for all.
    """

    layers: tuple[LayerCache, ...]
    ancestors: Int[Array, "pools rows steps"]
    position: Int[Array, ""]
    memory_mask: Bool[Array, "batch memory"] | None

    def visible_slots(self, length: int) -> Bool[Array, "pools targets slots"]:
        """Which slots each of `length` new tokens of each row may look at: its own past and the new ones up to itself.

        Targets are step-major, as slots are.
        """
        pools, rows, steps = self.ancestors.shape
        step = jnp.arange(steps)
        reached = step <= self.position + jnp.arange(length)[:, None]
        mine = self.ancestors[:, None, :, :, None] == jnp.arange(rows)
        return (mine & reached[:, None, :, None]).reshape(pools, length * rows, steps * rows)

    def reorder(self, parents: Int[Array, "batch rows"]) -> Cache:
        """The cache after row i of an image has become a continuation of its row `parents[image, i]`.

        Parents must be of the same group.
        """
        pools, rows, steps = self.ancestors.shape
        local = parents.reshape(pools, rows) % rows
        past = jnp.take_along_axis(self.ancestors, local[:, :, None], axis=1)
        own = jnp.arange(rows, dtype=past.dtype)[:, None]
        return self.replace(ancestors=jnp.where(jnp.arange(steps) < self.position, past, own))


def empty_cache(
    memory: tuple[tuple[jax.Array, jax.Array], ...],
    memory_mask: Bool[Array, "batch memory"] | None,
    rows: int,
    groups: int,
    length: int,
) -> Cache:
    """A cache for `length` steps of `rows` captions an image, given each layer's projected memory."""
    if rows % groups:
        raise ValueError(f"a cache of {rows} rows cannot have {groups} groups of the same size")
    pools, members = memory[0][0].shape[0] * groups, rows // groups

    def layer(keys: jax.Array, values: jax.Array) -> LayerCache:
        _, heads, depth, _ = keys.shape
        return LayerCache(
            keys=jnp.zeros((pools, heads, depth, length * members), keys.dtype),
            values=jnp.zeros((pools, heads, length * members, depth), values.dtype),
            memory_keys=keys,
            memory_values=values,
        )

    own = jnp.broadcast_to(jnp.arange(members, dtype=jnp.int32)[:, None], (pools, members, length))
    return Cache(tuple(layer(*pair) for pair in memory), own, jnp.zeros((), jnp.int32), memory_mask)
