"""Einsum of low-precision arrays with a float32 result."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def einsum_float32_reference(
    subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes `jnp.einsum` of two arrays of the same dtype, with a float32 result."""
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum_float32_reference`, whose backward pass first casts the cotangent to the dtype of the operands.

    Autodiff would instead convert the operands to float32, and float32 matrix products run at half the speed on an H200
    (docs/results/h200.md). Both accumulate in float32.
    """
    return einsum_float32_reference(subscripts, left, right)


def _forward(subscripts: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return einsum_float32_reference(subscripts, left, right), (left, right)


def _backward(subscripts: str, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    left, right = residuals
    _, pullback = jax.vjp(functools.partial(jnp.einsum, subscripts), left, right)
    return pullback(gradient.astype(jnp.result_type(left, right)))


einsum_float32.defvjp(_forward, _backward)
