"""1 x 1 convolutions and their gradients, compared with matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.pointwise import (
    pointwise_conv,
    pointwise_conv_reference,
    scaled_pointwise_conv,
    scaled_pointwise_conv_reference,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-7)])
def test_outputs_and_gradients_equal_those_of_a_matrix_product(dtype, tolerance):
    rng = np.random.RandomState(0)
    x, kernel, cotangent = (jnp.asarray(rng.randn(*shape), dtype) for shape in ((2, 5, 3, 7), (7, 4), (2, 5, 3, 4)))

    def compute_output_and_gradients(op):
        out, pullback = jax.vjp(op, x, kernel)
        return out, *pullback(cotangent)

    results = jax.jit(compute_output_and_gradients, static_argnums=0)(pointwise_conv)
    for ours, reference in zip(results, compute_output_and_gradients(pointwise_conv_reference), strict=True):
        assert ours.dtype == dtype
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), reference.astype(jnp.float32), rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-6)])
@pytest.mark.parametrize("side", [3, 9])  # images or kernels are scaled
def test_scaled_channels_equal_a_product_of_scaled_images(side, dtype, tolerance):
    rng = np.random.RandomState(0)
    shapes = ((2, side, side, 7), (2, 7), (7, 4), (2, side, side, 4))
    x, scales, kernel, cotangent = (jnp.asarray(rng.randn(*shape), dtype) for shape in shapes)
    kernel = kernel.astype(jnp.float32)  # like a parameter

    def compute_output_and_gradients(op):
        out, pullback = jax.vjp(op, x, scales, kernel)
        return out, *pullback(cotangent)

    results = jax.jit(compute_output_and_gradients, static_argnums=0)(scaled_pointwise_conv)
    expected = compute_output_and_gradients(scaled_pointwise_conv_reference)
    for ours, reference, like in zip(results, expected, (x, x, scales, kernel), strict=True):
        assert ours.dtype == like.dtype
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), reference.astype(jnp.float32), rtol=tolerance, atol=tolerance * scale
        )
