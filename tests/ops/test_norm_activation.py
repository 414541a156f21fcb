"""Fused batch norm and activation compared with the reference."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.norm_activation import (
    norm_activation,
    norm_activation_reference,
    stored_norm_activation,
    stored_norm_activation_reference,
)


def make_inputs(dtype):
    """Returns random inputs [8, 3, 2, 5] and three vectors [5]."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.normal(size=(8, 3, 2, 5)) + 2, dtype)
    return x, *(jnp.asarray(rng.normal(size=5), jnp.float32) for _ in range(3))


@pytest.mark.parametrize("activation", ["linear", "swish", "relu6"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_values_statistics_and_gradients_equal_the_reference(activation, groups, dtype, tolerance):
    x, scale, bias, shift = make_inputs(dtype)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def compute_gradients_and_outputs(op):
        def loss(x, scale, bias):
            out, *statistics = op(x, scale, bias, shift, groups, 1e-3, activation)
            return jnp.sum(out * weights), (out, statistics)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias)

    def assert_close(actual, expected):
        assert actual.dtype == expected.dtype
        actual, expected = np.float32(actual), np.float32(expected)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())

    ours, reference = map(compute_gradients_and_outputs, (norm_activation, norm_activation_reference))
    jax.tree.map(assert_close, ours, reference)


@pytest.mark.parametrize("activation", ["linear", "swish", "relu6"])
def test_results_with_stored_statistics_equal_the_reference(activation):
    x, scale, bias, mean = make_inputs(jnp.float32)
    var, weights = jnp.square(mean) + 0.1, jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def compute_gradients_and_outputs(op):
        def loss(x, scale, bias):
            out = op(x, mean, var, scale, bias, 1e-3, activation)
            return jnp.sum(out * weights), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias)

    ours, reference = map(compute_gradients_and_outputs, (stored_norm_activation, stored_norm_activation_reference))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, reference)


def test_only_the_input_is_stored_for_the_backward_pass():
    x = jnp.ones((8, 6, 6, 16))
    scale = jnp.ones(16)
    _, pullback = jax.vjp(lambda x, scale: norm_activation(x, scale, scale, scale, 2, 1e-3, "swish")[0], x, scale)
    residuals = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "size", 0) >= x.size]
    assert len(residuals) == 1
