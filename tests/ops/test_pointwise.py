"""The 1 x 1 convolution and its gradients against a matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.pointwise import pointwise_conv, pointwise_conv_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-7)])
def test_equals_the_product_and_its_gradients(dtype, tolerance):
    random = np.random.RandomState(0)
    x, kernel, weights = (jnp.asarray(random.randn(*shape), dtype) for shape in ((2, 5, 3, 7), (7, 4), (2, 5, 3, 4)))

    def both(op):
        out, pullback = jax.vjp(op, x, kernel)
        return out, *pullback(weights)

    for ours, reference in zip(
        jax.jit(both, static_argnums=0)(pointwise_conv), both(pointwise_conv_reference), strict=True
    ):
        assert ours.dtype == dtype
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), reference.astype(jnp.float32), rtol=tolerance, atol=tolerance * scale
        )
