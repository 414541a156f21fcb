"""Rows of packed tokens: captions laid end to end, so that nothing is computed for the pads between them."""

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
    data_fields=["segment_ids", "positions", "tokens"],
    meta_fields=["rows", "per_row", "length"],
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """Which caption each token of a batch of rows belongs to, and its position there.

    A row holds captions of the batch in order: row r those from r * `per_row` on, of which one without a token takes no
    room. A batch without packing is the special case of one caption per row (`one_per_row`). Rows are what a mesh
    shards: no token leaves its row.

    Attributes:
        segment_ids: number of the token's caption in its row, from 1 on; 0 for padding.
        positions: position of the token in its caption, from 0 on.
        tokens: the inverse: for each caption of a row and each position in it, which token of the row is there; the
            number of tokens where none is. None where a row is one caption, which needs no inverse.
        rows: shape of the rows, such as (batch, captions); () for a single row without an axis of its own.
        per_row: captions of a row.
        length: most tokens of a caption.
    """

    segment_ids: Int[Array, "*#rows tokens"]
    positions: Int[Array, "*#rows tokens"]
    tokens: Int[Array, "*rows slots"] | None
    rows: tuple[int, ...]
    per_row: int
    length: int

    @classmethod
    def one_per_row(cls, shape: tuple[int, ...], start: int | Int[Array, ""] = 0) -> Segments:
        """Segments of unpacked tokens [*rows, length], whose first tokens have the position `start`."""
        *rows, length = shape
        ids = np.ones(length, np.int32)
        return cls(ids, start + np.arange(length, dtype=np.int32), None, tuple(rows), 1, length)

    @classmethod
    def packed(
        cls, segment_ids: Int[Array, "*rows tokens"], positions: Int[Array, "*rows tokens"], per_row: int, length: int
    ) -> Segments:
        """Segments of packed tokens. `input_pipeline.packing` makes the ids and positions.

        A single row loses its axis: XLA:CPU takes fifty times as long for sums over the tokens behind an axis of
        length 1, such as the gradients of biases and norms.
        """
        if segment_ids.shape[:-1] == (1,):
            segment_ids, positions = segment_ids[0], positions[0]
        *rows, count = segment_ids.shape
        absent = jnp.full((per_row * length,), count, segment_ids.dtype)
        slots = jnp.where(segment_ids > 0, (segment_ids - 1) * length + positions, per_row * length)
        numbers = jnp.arange(count, dtype=segment_ids.dtype)
        tokens = _over_rows(lambda row: absent.at[row].set(numbers, mode="drop"), slots)
        return cls(segment_ids, positions, tokens, tuple(rows), per_row, length)

    @property
    def is_packed(self) -> bool:
        """Whether rows leave pads out, so that tokens have to be moved to their captions."""
        return self.tokens is not None

    @property
    def captions(self) -> int:
        """Number of captions in the batch."""
        return math.prod(self.rows) * self.per_row

    @property
    def caption_ids(self) -> Int[Array, "*rows tokens"]:
        """Number of each token's caption in the batch; of a pad any caption of its row."""
        first = self.per_row * jnp.arange(math.prod(self.rows), dtype=jnp.int32).reshape(*self.rows, 1)
        return first + jnp.maximum(self.segment_ids, 1) - 1

    @property
    def token_ids(self) -> Int[Array, "*rows tokens"]:
        """Number of each token in the batch, that of its place among unpacked captions: the same for any packing."""
        return self.caption_ids * self.length + self.positions

    def image_ids(self, images: int) -> Int[Array, "*rows tokens"]:
        """Number of each token's image, of as many captions each."""
        return self.caption_ids // (self.captions // images)

    def to_captions(self, x: Float[Array, "*rows tokens *features"]) -> Float[Array, "captions length *features"]:
        """Moves tokens to their captions, and 0 to where a caption has none."""
        features = x.shape[len(self.rows) + 1 :]
        if self.is_packed:
            x = _take(x.reshape(*self.rows, x.shape[len(self.rows)], -1), self.tokens, self._slots)
        return x.reshape(self.captions, self.length, *features)

    def to_rows(self, x: Float[Array, "captions length *features"]) -> Float[Array, "*rows tokens *features"]:
        """Moves tokens of captions back to their rows, and 0 to the padding; the adjoint of `to_captions`."""
        features = x.shape[2:]
        if self.is_packed:
            x = _take(x.reshape(*self.rows, self.per_row * self.length, -1), self._slots, self.tokens)
        return x.reshape(*self.rows, -1, *features)

    @property
    def _slots(self) -> Int[Array, "*rows tokens"]:
        slots = (self.segment_ids - 1) * self.length + self.positions
        return jnp.where(self.segment_ids > 0, slots, self.per_row * self.length)


def _over_rows(function, *arrays: Array) -> Array:
    """Maps a function of rows over all axes before the last ones, which its first argument has one of."""
    for _ in range(arrays[0].ndim - 1):
        function = jax.vmap(function)
    return function(*arrays)


@jax.custom_vjp
def _take(x: Float[Array, "*rows before width"], indices: Int[Array, "*rows after"], back: Int[Array, "*rows before"]):
    """x[indices] of each row, 0 where an index is out of bounds.

    The gradient is a gather too, by `back`: each element is taken at most once, so nothing has to be summed.
    """
    del back
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
    return _over_rows(lambda indices, x: take(x, indices), indices, x)


_take.defvjp(
    lambda x, indices, back: (_take(x, indices, back), (indices, back)),
    lambda saved, gradient: (_take(gradient, *saved[::-1]), None, None),
)
