"""Packs captions that were sampled in a jitted step, so that a second pass over them wastes little on padding."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from caption_jax.ops.segments import Segments

# Capacity of the packed rows, as a fraction of all positions. Captions of Flickr8k and COCO fill 55 to 60 % of the
# positions up to `config.data.max_length`.
PACKED_FRACTION = 2 / 3


class PackedTokens(NamedTuple):
    """Packed rows, which contain the captions of consecutive images.

    Attributes:
        segments: caption and position of each token of the rows.
        slots: index of each token of the rows among the positions of its row's captions; out of bounds for padding.
    """

    segments: Segments
    slots: Int[Array, "rows tokens"]

    def take(self, values: Shaped[Array, "images captions length"], padding: float) -> Shaped[Array, "*rows tokens"]:
        """Returns the values of the tokens of the rows."""
        rows = values.reshape(len(self.slots), -1)
        packed = jnp.take_along_axis(rows, self.slots, axis=1, mode="fill", fill_value=padding)
        return packed.reshape(self.segments.segment_ids.shape)


def pack_tokens(is_token: Bool[Array, "images captions length"], rows: int, capacity: int) -> PackedTokens:
    """Moves the tokens of captions to packed rows of `capacity` positions. Tokens that do not fit are left out.

    Unlike `input_pipeline.packing`, this can be traced by `jax.jit`.

    Args:
        is_token: True for tokens, False for padding.
        rows: number of rows, such as the number of devices; must divide the number of images.
        capacity: number of positions per row.
    """
    _, captions, length = is_token.shape
    flat = is_token.reshape(rows, -1)
    positions = flat.shape[1]
    slots = jax.vmap(lambda row: jnp.nonzero(row, size=capacity, fill_value=positions)[0])(flat).astype(jnp.int32)
    is_filled = slots < positions
    segment_ids = jnp.where(is_filled, slots // length + 1, 0)
    segments = Segments.packed(
        segment_ids, jnp.where(is_filled, slots % length, 0), len(is_token) // rows * captions, length
    )
    return PackedTokens(segments, slots)


def packed_capacity(images: int, captions: int, length: int, rows: int) -> int:
    """Returns the capacity of a row for `PACKED_FRACTION`."""
    return int(images // rows * captions * length * PACKED_FRACTION)


def fits(is_token: Bool[Array, "images captions length"], rows: int, capacity: int) -> Bool[Array, ""]:
    """Returns whether the tokens of every row fit in `capacity` positions."""
    return is_token.reshape(rows, -1).sum(1).max() <= capacity
