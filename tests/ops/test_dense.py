"""The dense layer, which has a custom backward pass, compared with linen's layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.models.layers import Dense


@pytest.mark.parametrize("shape, features", [((6, 3), 5), ((2, 4, 7), 3), ((2, 2, 3, 4), 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_equal_linen(shape, features, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(*shape[:-1], features)), dtype)
    ours, reference = Dense(features, dtype=dtype), nn.Dense(features, dtype=dtype)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, reference.init(jax.random.key(0), x))
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 2e-2}

    def compute_output_and_gradients(module):
        output, pullback = jax.vjp(module.apply, params, x)
        return output, pullback(cotangent)

    def assert_close(actual, expected):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(np.float32(actual), np.float32(expected), **tolerances)

    jax.tree.map(assert_close, compute_output_and_gradients(ours), compute_output_and_gradients(reference))
