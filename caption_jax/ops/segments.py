"""Rows of packed tokens, in which captions are concatenated without padding in between."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["segment_ids", "positions", "token_indices"],
    meta_fields=["row_shape", "per_row", "length"],
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """Maps each token of a batch of rows to its caption and its position in the caption.

    Rows contain the captions of the batch in order. The first caption of row i has the index i * `per_row`. Empty
    captions take no space. An unpacked batch is the special case of one caption per row (`one_per_row`). Rows are
    sharded over the mesh, and tokens are never moved between rows.

    Attributes:
        segment_ids: index of the token's caption in its row, starting from 1; 0 for padding.
        positions: position of the token in its caption, starting from 0.
        token_indices: inverse mapping, from each position of each caption to the index of its token in the row, or to
            the length of the row if there is no token. None for unpacked rows, which need no inverse.
        row_shape: shape of the row axes, such as (batch, captions); () for a single row without an axis.
        per_row: number of captions per row.
        length: maximum number of tokens per caption.
    """

    segment_ids: Int[Array, "*#rows tokens"]
    positions: Int[Array, "*#rows tokens"]
    token_indices: Int[Array, "*rows slots"] | None
    row_shape: tuple[int, ...]
    per_row: int
    length: int

    @classmethod
    def one_per_row(cls, shape: tuple[int, ...], start: int | Int[Array, ""] = 0) -> Segments:
        """Creates the segments of unpacked tokens of shape [*rows, length], with positions starting from `start`."""
        *rows, length = shape
        ids = np.ones(length, np.int32)
        return cls(ids, start + np.arange(length, dtype=np.int32), None, tuple(rows), 1, length)

    @classmethod
    def packed(
        cls, segment_ids: Int[Array, "*rows tokens"], positions: Int[Array, "*rows tokens"], per_row: int, length: int
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
        return cls(segment_ids, positions, tokens, tuple(rows), per_row, length)

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

    def image_ids(self, num_images: int) -> Int[Array, "*rows tokens"]:
        """Returns the index of each token's image, for `num_images` images with the same number of captions each."""
        return self.caption_ids // (self.num_captions // num_images)

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
