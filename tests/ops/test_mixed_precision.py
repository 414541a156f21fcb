"""Matrix products with float32 results, and the dtypes of the products in their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from caption_jax.ops.attend import attend
from caption_jax.ops.cross_entropy import vocabulary_cross_entropy
from caption_jax.ops.dense import dense
from caption_jax.ops.mixed_precision import einsum_float32, einsum_float32_reference, multiply, multiply_reference
from caption_jax.ops.pointwise import pointwise_conv

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(5, 7)), RNG.normal(size=(3, 7))
WEIGHTS = RNG.normal(size=(5, 3)).astype(np.float32)


def compute_gradients(einsum, dtype):
    def compute_loss(left, right):
        return jnp.sum(einsum("id,vd->iv", left, right) * WEIGHTS)

    return jax.grad(compute_loss, (0, 1))(jnp.asarray(LEFT, dtype), jnp.asarray(RIGHT, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_dtype_equal_the_reference(dtype):
    arrays = jnp.asarray(LEFT, dtype), jnp.asarray(RIGHT, dtype)
    product = einsum_float32("id,vd->iv", *arrays)
    assert product.dtype == jnp.float32
    np.testing.assert_array_equal(product, einsum_float32_reference("id,vd->iv", *arrays))


def test_float32_gradients_equal_those_of_the_reference():
    gradients = compute_gradients(einsum_float32, jnp.float32)
    for gradient, expected in zip(gradients, compute_gradients(einsum_float32_reference, jnp.float32), strict=True):
        np.testing.assert_array_equal(gradient, expected)


def test_bfloat16_gradients_are_within_rounding_of_float32_gradients():
    exact = compute_gradients(einsum_float32, jnp.float32)
    for gradient, expected in zip(compute_gradients(einsum_float32, jnp.bfloat16), exact, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=0.02, atol=0.05)


def list_product_dtypes(function, *arguments) -> list[tuple[str, str]]:
    """Returns the operand dtypes of all matrix products in the gradient of a function, for all platforms."""
    products = []

    def visit(jaxpr: core.Jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                products.append(tuple(str(operand.aval.dtype) for operand in equation.invars))
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                        visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(jax.grad(function, tuple(range(len(arguments)))))(*arguments).jaxpr)
    return products


def make_array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.bfloat16)


def test_attention_multiplies_bfloat16_arrays_in_both_passes():
    def compute_loss(queries, keys, values):
        return attend(queries, keys, values, None)[0].astype(jnp.float32).sum()

    products = list_product_dtypes(compute_loss, make_array(2, 6, 3, 4), make_array(2, 3, 4, 5), make_array(2, 3, 5, 4))
    assert len(products) >= 6
    assert set(products) == {("bfloat16", "bfloat16")}


def test_the_loss_multiplies_bfloat16_arrays_in_both_passes():
    targets, weights = np.zeros((2, 6), np.int32), np.ones((2, 6), np.float32)

    def compute_loss(states, embedding, bias):
        return vocabulary_cross_entropy(states, embedding, bias, targets, weights, 0.1).loss_sum

    arrays = make_array(2, 6, 4), make_array(9, 4), jnp.zeros(9)
    products = list_product_dtypes(compute_loss, *arrays)
    assert len(products) >= 6  # three for each platform
    assert set(products) == {("bfloat16", "bfloat16")}


def test_a_product_in_bfloat16_equals_the_reference_up_to_one_rounding():
    x, kernel = jnp.asarray(LEFT, jnp.bfloat16), jnp.asarray(RIGHT.T, jnp.float32)
    product, expected = multiply(x, kernel), multiply_reference(x, kernel)
    assert product.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(product.astype(jnp.float32), expected.astype(jnp.float32), rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("layer", [dense, lambda x, kernel: pointwise_conv(x[None, None], kernel)])
def test_products_in_bfloat16_have_a_float32_result_on_a_cpu_also_in_the_gradient(layer):
    x, kernel = jnp.asarray(LEFT, jnp.bfloat16), jnp.asarray(RIGHT.T, jnp.float32)
    gradient = jax.jit(jax.grad(lambda x, kernel: layer(x, kernel).astype(jnp.float32).sum(), (0, 1)))
    lines = gradient.lower(x, kernel).as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert products and all("xbf16>" in line and line.endswith("xf32>") for line in map(str.rstrip, products)), products
