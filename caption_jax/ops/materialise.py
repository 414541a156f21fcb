"""Materialises a result in memory that XLA:CPU would otherwise recompute for each of its consumers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def materialise_reference(function: Callable[..., Array], *arrays: Array, opaque: Float[Array, "..."]) -> Array:
    """Returns `function(*arrays)`.

    Args:
        function: maps the arrays to one array.
        arrays: arguments of `function`.
        opaque: any small floating-point array that is unknown at compile time and replicated on all devices. It does
            not affect the result.
    """
    del opaque
    return function(*arrays)


def materialise(function: Callable[..., Array], *arrays: Array, opaque: Float[Array, "..."]) -> Array:
    """`materialise_reference`, computed only once for any number of consumers.

    XLA:CPU fuses a sum into all of its consumers, so a convolution written as a sum would be recomputed in each of
    them. XLA removes `lax.optimization_barrier` before fusion, but never fuses across a conditional. The conditional
    here always takes the same branch: its predicate is true for any `opaque`, but depends on its first element, so the
    compiler cannot simplify it.
    """
    bits = lax.bitcast_convert_type(opaque.reshape(-1)[0].astype(jnp.float32), jnp.int32)
    out = jax.eval_shape(function, *arrays)
    return lax.cond((bits | 1) != 0, function, lambda *_: jnp.zeros(out.shape, out.dtype), *arrays)
