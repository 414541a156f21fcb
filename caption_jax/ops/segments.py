"""Rows of packed tokens, in which captions are concatenated without padding in between."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["segment_ids", "positions", "token_indices"],
    meta_fields=["row_shape", "per_row", "length", "block_length"],
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """Maps each token of a batch of rows to its caption and its position in the caption.

    Rows contain the captions of the batch in order. The first caption of row i has the index i * `per_row`. Empty
    captions take no space. An unpacked batch is the special case of one caption per row (`one_per_row`). Rows are
    sharded over the mesh, and tokens are never moved between rows.

    A row may be divided into blocks of equal length, each with captions of a single image and padding at its end. The
    first blocks of a row are those of its images, in order, and the remaining blocks contain captions that did not fit
    in the block of their image. Attention is then computed per block, and tokens need not be moved to their captions.

    Attributes:
        segment_ids: index of the token's caption in its row, starting from 1; 0 for padding.
        positions: position of the token in its caption, starting from 0.
        token_indices: inverse mapping, from each position of each caption to the index of its token in the row, or to
            the length of the row if there is no token. None for unpacked rows, which need no inverse.
        row_shape: shape of the row axes, such as (batch, captions); () for a single row without an axis.
        per_row: number of captions per row.
        length: maximum number of tokens per caption.
        block_length: number of tokens per block; None if rows are not divided into blocks.
    """

    segment_ids: Int[Array, "*#rows tokens"]
    positions: Int[Array, "*#rows tokens"]
    token_indices: Int[Array, "*rows slots"] | None
    row_shape: tuple[int, ...]
    per_row: int
    length: int
    block_length: int | None = None

    @classmethod
    def one_per_row(cls, shape: tuple[int, ...], start: int | Int[Array, ""] = 0) -> Segments:
        """Creates the segments of unpacked tokens of shape [*rows, length], with positions starting from `start`."""
        *rows, length = shape
        ids = np.ones(length, np.int32)
        return cls(ids, start + np.arange(length, dtype=np.int32), None, tuple(rows), 1, length)

    @classmethod
    def packed(
        cls,
        segment_ids: Int[Array, "*rows tokens"],
        positions: Int[Array, "*rows tokens"],
        per_row: int,
        length: int,
        block_length: int | None = None,
    ) -> Segments:
        """Creates the segments of packed tokens from the ids and positions computed by `input_pipeline.packing`.

        If there is a single row, its axis is removed. With a leading axis of length 1, sums over tokens would be 50
        times slower with XLA:CPU, for example in the gradients of biases and norms.
        """
        if segment_ids.shape[:-1] == (1,):
            segment_ids, positions = segment_ids[0], positions[0]
        *rows, count = segment_ids.shape
        no_token = jnp.full((per_row * length,), count, segment_ids.dtype)
        slots = jnp.where(segment_ids > 0, (segment_ids - 1) * length + positions, per_row * length)
        indices = jnp.arange(count, dtype=segment_ids.dtype)
        tokens = _map_rows(lambda row_slots: no_token.at[row_slots].set(indices, mode="drop"), slots)
        return cls(segment_ids, positions, tokens, tuple(rows), per_row, length, block_length)

    @property
    def is_packed(self) -> bool:
        """Whether rows are packed, in which case tokens must be moved to their captions."""
        return self.token_indices is not None

    @property
    def num_captions(self) -> int:
        """Number of captions in the batch."""
        return math.prod(self.row_shape) * self.per_row

    @property
    def caption_ids(self) -> Int[Array, "*rows tokens"]:
        """Index of each token's caption in the batch. For padding, the index of the first caption in the row."""
        first = self.per_row * jnp.arange(math.prod(self.row_shape), dtype=jnp.int32).reshape(*self.row_shape, 1)
        return first + jnp.maximum(self.segment_ids, 1) - 1

    @property
    def token_ids(self) -> Int[Array, "*rows tokens"]:
        """Index of each token in the unpacked batch."""
        return self.caption_ids * self.length + self.positions

    def memory_ids(self, num_memories: int) -> Int[Array, "*rows tokens"]:
        """Returns the index of the memory that each token attends to: that of its block, or else that of its image."""
        if self.block_length is None:
            return self.caption_ids // (self.num_captions // num_memories)
        blocks = jnp.arange(num_memories, dtype=jnp.int32).reshape(*self.row_shape, -1)
        return jnp.repeat(blocks, self.block_length, axis=-1)

    def to_memories(self, memory: Shaped[Array, "images ..."]) -> Shaped[Array, "memories ..."]:
        """Returns the array that `memory_ids` refers to: an array per image, or a copy of it per block of the image.

        Only the blocks after the first block of each image of a row are copied.
        """
        if self.block_length is None:
            return memory
        images = len(memory) // math.prod(self.row_shape)
        first_ids = jnp.maximum(self.segment_ids[..., :: self.block_length], 1) - 1  # empty blocks copy the first image
        extra_images = first_ids[..., images:] // (self.per_row // images)
        memory = memory.reshape(*self.row_shape, images, *memory.shape[1:])
        copies = _map_rows(lambda indices, row: jnp.take(row, indices, axis=0), extra_images, memory)
        memory = jnp.concatenate([memory, copies], axis=len(self.row_shape))
        return memory.reshape(-1, *memory.shape[len(self.row_shape) + 1 :])

    def to_blocks(self, x: Shaped[Array, "..."]) -> Shaped[Array, "blocks block_length ..."]:
        """Divides rows of tokens [*rows, tokens, *features] into their blocks."""
        return x.reshape(-1, self.block_length, *x.shape[len(self.row_shape) + 1 :])

    def from_blocks(self, x: Shaped[Array, "blocks block_length ..."]) -> Shaped[Array, "..."]:
        """Inverts `to_blocks`."""
        return x.reshape(*self.row_shape, -1, *x.shape[2:])

    def to_captions(self, x: Float[Array, "..."]) -> Float[Array, "captions length *features"]:
        """Moves tokens [*rows, tokens, *features] to their captions, padding captions with zeros."""
        features = x.shape[len(self.row_shape) + 1 :]
        if self.is_packed:
            x = _gather(x.reshape(*self.row_shape, x.shape[len(self.row_shape)], -1), self.token_indices, self._slots)
        return x.reshape(self.num_captions, self.length, *features)

    def to_rows(self, x: Float[Array, "captions length *features"]) -> Float[Array, "..."]:
        """Moves tokens from their captions back to their rows [*rows, tokens, *features], with zeros for padding.

        This is the adjoint of `to_captions`.
        """
        features = x.shape[2:]
        if self.is_packed:
            x = _gather(x.reshape(*self.row_shape, self.per_row * self.length, -1), self._slots, self.token_indices)
        return x.reshape(*self.row_shape, -1, *features)

    @property
    def _slots(self) -> Int[Array, "*rows tokens"]:
        slots = (self.segment_ids - 1) * self.length + self.positions
        return jnp.where(self.segment_ids > 0, slots, self.per_row * self.length)


def _map_rows(function, *arrays: Array) -> Array:
    """Vmaps a function of one row over all axes of the first array except the last."""
    for _ in range(arrays[0].ndim - 1):
        function = jax.vmap(function)
    return function(*arrays)


@jax.custom_vjp
def _gather(
    x: Float[Array, "*rows inputs width"], indices: Int[Array, "*rows outputs"], inverse: Int[Array, "*rows inputs"]
):
    """Returns x[indices] for each row, or 0 where an index is out of bounds.

    The gradient is also a gather, with the inverse indices, because each element of `x` is used at most once.
    """
    del inverse
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
    return _map_rows(lambda indices, x: take(x, indices), indices, x)


def _gather_forward(x: Array, indices: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gather(x, indices, inverse), (indices, inverse)


def _gather_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    indices, inverse = residuals
    return _gather(gradient, inverse, indices), None, None


_gather.defvjp(_gather_forward, _gather_backward)
