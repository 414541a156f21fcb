"""Products with kernels of 8-bit integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.int8_product import Int8Array, dequantise, int8_product, int8_product_reference
from caption_jax.parameters.stored_dtypes import quantise


def make_kernel(rng: np.random.Generator, inputs: int, outputs: int) -> Int8Array:
    """Returns a kernel whose channels differ in magnitude."""
    kernel = rng.normal(size=(inputs, outputs)) * np.exp(rng.normal(size=outputs))
    return Int8Array(*quantise(kernel.astype(np.float32), -1))


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 4)])  # fewer and more rows than are multiplied at a time
def test_the_product_is_within_the_rounding_of_its_inputs(shape):
    rng = np.random.default_rng(0)
    kernel, x = make_kernel(rng, 48, 20), rng.normal(size=(*shape, 48)).astype(np.float32)
    exact = int8_product_reference(x, kernel)
    np.testing.assert_allclose(exact, x @ dequantise(kernel), rtol=1e-4, atol=1e-4)
    half_step = np.abs(x).max(-1, keepdims=True) / 127 / 2
    bound = half_step * np.abs(dequantise(kernel)).sum(0) + 1e-4
    product = jax.jit(int8_product)(x, kernel)
    assert product.shape == (*shape, 20)
    assert (np.abs(product - exact) <= bound).all()
    assert np.abs(product - exact).mean() < 0.02 * np.abs(exact).mean()


def test_rows_do_not_depend_on_each_other_and_zeros_stay_zeros():
    rng = np.random.default_rng(1)
    kernel, x = make_kernel(rng, 32, 8), rng.normal(size=(12, 32)).astype(np.float32)
    x[3], x[4] = 0, 1e6 * x[4]
    product = int8_product(x, kernel)
    for row in (0, 3, 11):
        np.testing.assert_allclose(product[row], int8_product(x[row], kernel), rtol=1e-6)
    assert not np.any(product[3])


def test_the_inputs_may_be_the_columns_of_the_kernel():
    rng = np.random.default_rng(2)
    kernel, x = make_kernel(rng, 32, 12), rng.normal(size=(9, 32)).astype(np.float32)
    transposed = Int8Array(kernel.values.T.copy(), kernel.scales.T)
    for operation in (int8_product, int8_product_reference):
        expected = operation(x, kernel)
        np.testing.assert_allclose(operation(x, transposed, inputs="columns"), expected, rtol=1e-6, atol=1e-6)


def test_the_product_is_float32_for_inputs_in_bfloat16():
    rng = np.random.default_rng(3)
    kernel, x = make_kernel(rng, 32, 12), jnp.asarray(rng.normal(size=(9, 32)), jnp.bfloat16)
    assert int8_product(x, kernel).dtype == int8_product_reference(x, kernel).dtype == jnp.float32
