"""KV cache of the decoder, laid out so that beams can be reordered without copying keys or values.

The rows (beams) of an image share one pool of slots. Slot (step, row) stores the key and value that the row computed at
that step, and is never moved. A lookup table, `ancestors[image, row, step]`, maps each row and step to the row whose
slot stores that step of its history. Reordering beams only reorders this table (a few bytes per step), whereas
gathering per-row caches would copy all keys and values in every layer at every step. The cost is that each row also
computes masked scores for the slots of the other rows, but their keys would be read anyway.

To avoid this cost, rows that never continue each other can be split into `groups` with one pool each. Diverse beam
search has one pool per beam group, and sampling has one pool per sample.

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

    There is one pool per image and group of rows, in image-major order.

    Attributes:
        layers: keys and values of each layer.
        ancestors: row (within the group) whose slot stores this row's history at each step.
        position: number of tokens decoded so far; the same for all rows.
        memory_mask: True for memory positions that may be attended to; all positions if None.
    """

    layers: tuple[LayerCache, ...]
    ancestors: Int[Array, "pools rows steps"]
    position: Int[Array, ""]
    memory_mask: Bool[Array, "batch memory"] | None

    def visible_slots(self, length: int) -> Bool[Array, "pools targets slots"]:
        """Returns the mask of the slots that each of `length` new tokens per row may attend to.

        These are the slots of the row's history up to and including the token. Targets are step-major, like slots.
        """
        pools, rows, steps = self.ancestors.shape
        step = jnp.arange(steps)
        is_causal = step <= self.position + jnp.arange(length)[:, None]
        is_ancestor = self.ancestors[:, None, :, :, None] == jnp.arange(rows)
        return (is_ancestor & is_causal[:, None, :, None]).reshape(pools, length * rows, steps * rows)

    def reorder(self, parents: Int[Array, "batch rows"]) -> Cache:
        """Returns the cache in which row i of each image continues the row `parents[image, i]` of the same group."""
        pools, rows, steps = self.ancestors.shape
        row_in_group = parents.reshape(pools, rows) % rows
        history = jnp.take_along_axis(self.ancestors, row_in_group[:, :, None], axis=1)
        identity = jnp.arange(rows, dtype=history.dtype)[:, None]
        return self.replace(ancestors=jnp.where(jnp.arange(steps) < self.position, history, identity))


def create_cache(
    memory: tuple[tuple[Float[Array, "batch heads depth memory"], Float[Array, "batch heads memory depth"]], ...],
    memory_mask: Bool[Array, "batch memory"] | None,
    rows: int,
    groups: int,
    length: int,
) -> Cache:
    """Returns an empty cache for `length` steps of `rows` captions per image.

    Args:
        memory: keys and values of the memory for each layer.
        memory_mask: True for memory positions that may be attended to; all positions if None.
        rows: number of captions per image.
        groups: number of groups that the rows are split into.
        length: number of steps.

    Raises:
        ValueError: `groups` does not divide `rows`.
    """
    if rows % groups:
        raise ValueError(f"cannot split the {rows} rows of a cache into {groups} groups of equal size")
    pools, rows_per_group = memory[0][0].shape[0] * groups, rows // groups

    def create_layer_cache(keys: Array, values: Array) -> LayerCache:
        _, heads, depth, _ = keys.shape
        return LayerCache(
            keys=jnp.zeros((pools, heads, depth, length * rows_per_group), keys.dtype),
            values=jnp.zeros((pools, heads, length * rows_per_group, depth), values.dtype),
            memory_keys=keys,
            memory_values=values,
        )

    identity = jnp.broadcast_to(jnp.arange(rows_per_group, dtype=jnp.int32)[:, None], (pools, rows_per_group, length))
    layers = tuple(create_layer_cache(keys, values) for keys, values in memory)
    return Cache(layers, identity, jnp.zeros((), jnp.int32), memory_mask)
