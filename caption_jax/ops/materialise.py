"""Materialises a result in memory, where XLA:CPU would recompute it for each of its consumers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def materialised_reference(function: Callable[..., Array], *arrays: Array, opaque: Float[Array, "..."]) -> Array:
    """Returns `function(*arrays)`.

    Args:
        function: maps the arrays to one array.
        arrays: arguments of `function`.
        opaque: any small floating-point array that is replicated on all devices and unknown at compile time. Does not
            affect the result.
    """
    del opaque
    return function(*arrays)


def materialised(function: Callable[..., Array], *arrays: Array, opaque: Float[Array, "..."]) -> Array:
    """`materialised_reference`, computed only once for any number of consumers.

    XLA:CPU fuses a sum into all of its consumers, so a convolution written as a sum would be recomputed for each of
    five consumers. It removes `lax.optimization_barrier` before fusion, but never fuses across a conditional. The
    conditional here always takes the same branch. Its predicate depends on the first element of `opaque`, so the
    compiler cannot simplify it, but it is true for any value.
    """
    bits = lax.bitcast_convert_type(opaque.reshape(-1)[0].astype(jnp.float32), jnp.int32)
    out = jax.eval_shape(function, *arrays)
    return lax.cond((bits | 1) != 0, function, lambda *_: jnp.zeros(out.shape, out.dtype), *arrays)
