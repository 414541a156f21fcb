"""Convolution with a custom gradient of its kernel, compared with XLA's convolution and its autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from caption_jax.ops.convolution import convolve


def convolve_with_xla(x, kernel, stride, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


NONE, ODD, SAME = ((0, 0), (0, 0)), ((1, 1), (2, 0)), ((0, 1), (0, 1))


@pytest.mark.parametrize(
    "channels, outputs, groups, size, stride, padding",
    [
        (3, 8, 1, 3, 2, SAME),
        (3, 8, 1, 3, 1, ODD),
        (1, 4, 1, 5, 3, ODD),
        (1, 4, 1, 1, 1, NONE),
        (6, 5, 1, 2, 2, NONE),
        (4, 8, 1, 3, 2, ODD),
        (6, 6, 6, 3, 2, SAME),
        (6, 6, 6, 5, 1, ODD),
    ],
)
def test_values_and_gradients_equal_those_of_xla(channels, outputs, groups, size, stride, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 12, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels // groups, outputs)), jnp.float32)
    expected, expected_pullback = jax.vjp(lambda *args: convolve_with_xla(*args, stride, padding, groups), x, kernel)
    actual, pullback = jax.vjp(lambda *args: convolve(*args, stride=stride, padding=padding, groups=groups), x, kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for ours, reference in zip(pullback(cotangent), expected_pullback(cotangent), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16(channels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 8, channels)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, 5)), jnp.float32)
    output, pullback = jax.vjp(lambda *args: convolve(*args, stride=2, padding=((0, 1), (0, 1))), x, kernel)
    cotangent = jnp.asarray(rng.normal(size=output.shape), jnp.bfloat16)
    x_gradient, kernel_gradient = pullback(cotangent)
    assert output.dtype == x_gradient.dtype == jnp.bfloat16
    assert kernel_gradient.dtype == jnp.float32
    assert not np.array_equal(kernel_gradient, kernel_gradient.astype(jnp.bfloat16).astype(jnp.float32))
    exact = [array.astype(jnp.float32) for array in (x, cotangent)]
    _, exact_pullback = jax.vjp(lambda kernel: convolve_with_xla(exact[0], kernel, 2, ((0, 1), (0, 1)), 1), kernel)
    np.testing.assert_allclose(kernel_gradient, exact_pullback(exact[1])[0], rtol=1e-5, atol=1e-4)
