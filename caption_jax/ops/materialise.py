"""A result written to memory once, where XLA:CPU would compute it again for each of its readers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def materialised_reference(function: Callable[..., Array], *arrays: Array, witness: Array) -> Array:
    """`function(*arrays)`.

    Args:
        function: of the arrays, to one array.
        arrays: its arguments.
        witness: any small floating-point array that every device holds; it does not change the result.
    """
    del witness
    return function(*arrays)


def materialised(function: Callable[..., Array], *arrays: Array, witness: Array) -> Array:
    """`materialised_reference`, computed once however many read it.

    XLA:CPU fuses a sum into everything that reads it, so that a convolution written as a sum is computed again for each
    of five readers; it drops `lax.optimization_barrier` before it fuses. What it never fuses is a branch: here, one of
    two that is always taken. The branch is chosen by the witness's first number, in a way that the compiler does not
    see through and that has the same outcome for all numbers.
    """
    bits = lax.bitcast_convert_type(witness.reshape(-1)[0].astype(jnp.float32), jnp.int32)
    out = jax.eval_shape(function, *arrays)
    return lax.cond((bits | 1) != 0, function, lambda *_: jnp.zeros(out.shape, out.dtype), *arrays)
