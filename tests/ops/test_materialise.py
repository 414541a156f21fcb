"""A materialised result: equal for any opaque value, and computed in one loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program_figures import compute_figures

from caption_jax.ops.materialise import materialise


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, -3e38, float("inf"), float("nan")])
def test_the_branch_is_always_taken(number):
    x = jnp.arange(6.0)
    out = jax.jit(lambda opaque: materialise(lambda a: 2 * a, x, opaque=opaque))(jnp.full((3,), number))
    np.testing.assert_array_equal(out, 2 * x)


def test_gradients_pass_through():
    x = jnp.arange(6.0)
    gradient = jax.grad(lambda x: jnp.sum(materialise(jnp.square, x, opaque=jnp.ones(1))))(x)
    np.testing.assert_array_equal(gradient, 2 * x)


def test_consumers_do_not_recompute_the_value():
    def program(x, opaque):
        y = materialise(lambda a: (a[:-2] + a[1:-1] + a[2:]) * 3.0, x, opaque=opaque)
        return y - jnp.sum(y), y * jnp.max(y)

    lowered = jax.jit(program).lower(jnp.ones((4098, 64)), jnp.ones(1))
    figures = compute_figures(lowered, lowered.compile())
    assert figures["per_image"]["flops"] / (4096 * 64) < 7.5  # three for y, and one for each reader and reduction
