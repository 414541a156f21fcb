"""The dense layer equals linen's, although its backward pass differs."""

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
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=shape), jnp.float32)
    gradient = jnp.asarray(random.normal(size=(*shape[:-1], features)), dtype)
    ours, reference = Dense(features, dtype=dtype), nn.Dense(features, dtype=dtype)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, reference.init(jax.random.key(0), x))

    def outcome(module):
        y, back = jax.vjp(module.apply, params, x)
        return y, back(gradient)

    def close(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), **({"rtol": 1e-5, "atol": 1e-6} if exact else loose))

    exact, loose = dtype == jnp.float32, {"rtol": 2e-2, "atol": 2e-2}
    jax.tree.map(close, outcome(ours), outcome(reference))
