"""Materialised values do not depend on the opaque value, and consumers do not recompute them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program_stats import compute_stats

from caption_jax.ops.materialise import materialise


@pytest.mark.parametrize("opaque_value", [0.0, -0.0, 1.5, -3e38, float("inf"), float("nan")])
def test_the_value_is_computed_for_any_opaque_value(opaque_value):
    x = jnp.arange(6.0)
    out = jax.jit(lambda opaque: materialise(lambda a: 2 * a, x, opaque=opaque))(jnp.full((3,), opaque_value))
    np.testing.assert_array_equal(out, 2 * x)


def test_materialised_values_are_differentiable():
    x = jnp.arange(6.0)
    gradient = jax.grad(lambda x: jnp.sum(materialise(jnp.square, x, opaque=jnp.ones(1))))(x)
    np.testing.assert_array_equal(gradient, 2 * x)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="values are materialised on CPUs only")
def test_consumers_do_not_recompute_a_materialised_value():
    def program(x, opaque):
        y = materialise(lambda a: (a[:-2] + a[1:-1] + a[2:]) * 3.0, x, opaque=opaque)
        return y - jnp.sum(y), y * jnp.max(y)

    lowered = jax.jit(program).lower(jnp.ones((4098, 64)), jnp.ones(1))
    stats = compute_stats(lowered, lowered.compile())
    # Three for y, and one for each of the two consumers and the two reductions.
    assert stats["per_image"]["flops"] / (4096 * 64) < 7.5
