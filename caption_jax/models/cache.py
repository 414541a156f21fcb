"""KV cache of the decoder, laid out so that beams can be reordered without copying keys or values.

The rows (beams) of an image share one pool of slots. Slot (step, row) holds the key and value that the row computed at
that step, and never moves. A small table, `ancestors[image, row, step]`, maps each row and step to the row whose
slot holds the row's history at that step. Reordering beams only reorders this table (a few bytes per step), whereas
gathering per-row caches would copy all keys and values in every layer at every step. The cost is that each row also
computes masked scores against the slots of its siblings, but their keys are read anyway.

Rows that are never reordered among each other can avoid this cost: rows are split into `groups` with one pool each.
Diverse beam search has one pool per beam group, sampling one per sample.

Keys are stored as [heads, depth, slots] and values as [heads, slots, depth], so that the matrix products of a step read
them sequentially. With the layout of the projections, [slots, heads, depth], the attention of a step takes twice as
long on a CPU.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LayerCache(flax.struct.PyTreeNode):
    """Keys and values of one layer. Slots are step-major: slot = step * rows_per_group + row_in_group."""

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
        """Returns the cache with the new keys and values written to consecutive slots starting at `slot`."""
        keys = keys.transpose(0, 2, 3, 1).astype(self.keys.dtype)
        values = values.swapaxes(1, 2).astype(self.values.dtype)
        return self.replace(
            keys=jax.lax.dynamic_update_slice(self.keys, keys, (0, 0, 0, slot)),
            values=jax.lax.dynamic_update_slice(self.values, values, (0, 0, slot, 0)),
        )


class Cache(flax.struct.PyTreeNode):
    """State of autoregressive decoding with several captions ("rows") per image.

    Each group of rows of an image has its own pool; pools are image-major.

    Attributes:
        layers: keys and values of each layer.
        ancestors: row (within the group) whose slot holds this row's history at each step.
        position: number of tokens decoded so far; the same for all rows.
        memory_mask: True for memory positions that may be attended to; all of them if None.
    """

    layers: tuple[LayerCache, ...]
    ancestors: Int[Array, "pools rows steps"]
    position: Int[Array, ""]
    memory_mask: Bool[Array, "batch memory"] | None

    def visible_slots(self, length: int) -> Bool[Array, "pools targets slots"]:
        """Mask of the slots that each of `length` new tokens per row may attend to: its row's history, up to itself.

        Targets are step-major, like slots.
        """
        pools, rows, steps = self.ancestors.shape
        step = jnp.arange(steps)
        is_causal = step <= self.position + jnp.arange(length)[:, None]
        is_ancestor = self.ancestors[:, None, :, :, None] == jnp.arange(rows)
        return (is_ancestor & is_causal[:, None, :, None]).reshape(pools, length * rows, steps * rows)

    def reorder(self, parents: Int[Array, "batch rows"]) -> Cache:
        """Returns the cache in which row i of each image continues the image's row `parents[image, i]`.

        A row and its parent must be in the same group.
        """
        pools, rows, steps = self.ancestors.shape
        row_in_group = parents.reshape(pools, rows) % rows
        history = jnp.take_along_axis(self.ancestors, row_in_group[:, :, None], axis=1)
        identity = jnp.arange(rows, dtype=history.dtype)[:, None]
        return self.replace(ancestors=jnp.where(jnp.arange(steps) < self.position, history, identity))


def empty_cache(
    memory: tuple[tuple[Float[Array, "batch heads depth memory"], Float[Array, "batch heads memory depth"]], ...],
    memory_mask: Bool[Array, "batch memory"] | None,
    rows: int,
    groups: int,
    length: int,
) -> Cache:
    """Returns a cache for `length` steps of `rows` captions per image, with each layer's projected memory."""
    if rows % groups:
        raise ValueError(f"cannot split the {rows} rows of a cache into {groups} groups of equal size")
    pools, rows_per_group = memory[0][0].shape[0] * groups, rows // groups

    def layer(keys: Array, values: Array) -> LayerCache:
        _, heads, depth, _ = keys.shape
        return LayerCache(
            keys=jnp.zeros((pools, heads, depth, length * rows_per_group), keys.dtype),
            values=jnp.zeros((pools, heads, length * rows_per_group, depth), values.dtype),
            memory_keys=keys,
            memory_values=values,
        )

    identity = jnp.broadcast_to(jnp.arange(rows_per_group, dtype=jnp.int32)[:, None], (pools, rows_per_group, length))
    layers = tuple(layer(keys, values) for keys, values in memory)
    return Cache(layers, identity, jnp.zeros((), jnp.int32), memory_mask)
