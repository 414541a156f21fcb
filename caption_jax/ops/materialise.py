"""Results that are written to memory before they are read, where XLA:CPU would compute them again for each reader."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def materialised(function: Callable[..., Array], *arrays: Array, witness: Array) -> Array:
    """Returns `function(*arrays)`, computed once whoever reads it.

    XLA:CPU fuses a sum into everything that reads it, so that a convolution written as a sum is done again for each of
    five readers; it drops `lax.optimization_barrier` before it fuses. What it never fuses is a branch: here, one of two
    that is always taken.

    Args:
        function: of the arrays, to one array.
        arrays: its arguments.
        witness: any small floating-point array that every device holds; the branch is chosen by its first number, in a
            way that the compiler does not see through, and that has the same outcome for all numbers.
    """
    bits = lax.bitcast_convert_type(witness.reshape(-1)[0].astype(jnp.float32), jnp.int32)
    out = jax.eval_shape(function, *arrays)
    return lax.cond((bits | 1) != 0, function, lambda *_: jnp.zeros(out.shape, out.dtype), *arrays)
