"""Tokens of many captions side by side, without the pads between them: what pads would cost is not computed."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Packing(flax.struct.PyTreeNode):
    """Where the tokens of a batch of captions lie when they are packed.

    The batch is cut into groups of as many images, one for each device that holds a part of it, so that no token leaves
    its device. `pack` and `unpack` are each other's adjoint: whatever has no partner is 0. Packed arrays of a single
    group have no axis for groups: XLA's sums over rows take fifty times as long on a CPU behind an axis of length 1.

    Attributes:
        places: number of each packed token among all of its group's, pads included; their count where there is no
            token.
        rows: the inverse: where each token of the group lies among the packed ones.
        shape: (batch, captions, length) of the tokens.
    """

    places: Int[Array, "groups packed"]
    rows: Int[Array, "groups tokens"]
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, places: Int[Array, "groups packed"], shape: tuple[int, int, int]) -> Packing:
        """The packing of captions of that shape; `input_pipeline.packing` makes `places`."""
        groups, packed = places.shape
        tokens = shape[0] * shape[1] * shape[2] // groups
        absent = jnp.full((tokens,), packed, places.dtype)
        rows = jax.vmap(lambda place: absent.at[place].set(jnp.arange(packed, dtype=places.dtype), mode="drop"))(places)
        return cls(places, rows, shape)

    @property
    def positions(self) -> Int[Array, "*groups packed"]:
        """Place of each token in its caption."""
        return (self.places % self.shape[-1]).reshape(self._packed)

    @property
    def ids(self) -> Int[Array, "*groups packed"]:
        """Number of each token in the whole batch: the same however many groups there are."""
        groups, tokens = self.rows.shape
        ids = self.places + tokens * jnp.arange(groups, dtype=self.places.dtype)[:, None]
        return ids.reshape(self._packed)

    def pack(self, x: Float[Array, "batch captions length *features"]) -> Float[Array, "*groups packed *features"]:
        """Leaves out what are no tokens."""
        moved = _move(x.reshape(*self.rows.shape, -1), self.places, self.rows)
        return moved.reshape(*self._packed, *x.shape[3:])

    def unpack(self, x: Float[Array, "*groups packed *features"]) -> Float[Array, "batch captions length *features"]:
        """Brings tokens back to their places."""
        moved = _move(x.reshape(*self.places.shape, -1), self.rows, self.places)
        return moved.reshape(*self.shape, *x.shape[len(self._packed) :])

    @property
    def _packed(self) -> tuple[int, ...]:
        groups, packed = self.places.shape
        return (packed,) if groups == 1 else (groups, packed)


def _move(x: jax.Array, there: jax.Array, back: jax.Array) -> jax.Array:
    return _take(x, there, back) if jnp.issubdtype(x.dtype, jnp.floating) else _take_rows(x, there)


def _take_rows(x: Float[Array, "groups rows width"], rows: Int[Array, "groups taken"]) -> jax.Array:
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
    return take(x[0], rows[0])[None] if len(x) == 1 else jax.vmap(take)(x, rows)


@jax.custom_vjp
def _take(x: Float[Array, "groups rows width"], rows: Int[Array, "groups taken"], back: Int[Array, "groups rows"]):
    """Rows of x. Its gradient is rows of the gradient, by `back`: each is taken once, so nothing has to be summed."""
    del back
    return _take_rows(x, rows)


_take.defvjp(
    lambda x, rows, back: (_take_rows(x, rows), (rows, back)), lambda kept, g: (_take(g, *kept[::-1]), None, None)
)
