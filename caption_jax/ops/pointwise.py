"""1 x 1 convolution, a matrix product over the channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from caption_jax.ops.mixed_precision import product_gradients


def pointwise_conv_reference(
    x: Float[Array, "batch height width in_channels"], kernel: Float[Array, "in_channels out_channels"]
) -> Float[Array, "batch height width out_channels"]:
    """Returns `x @ kernel`, which mixes the channels at each spatial position.

    The kernel is cast to the dtype of `x`, which is also the dtype of the result.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


@jax.custom_vjp
def pointwise_conv(
    x: Float[Array, "batch height width in_channels"], kernel: Float[Array, "in_channels out_channels"]
) -> Float[Array, "batch height width out_channels"]:
    """`pointwise_conv_reference` with a gradient optimised for CPUs. The gradient of a float32 kernel is float32.

    The gradient consists of matrix products of [positions, channels] arrays, because XLA:CPU would transpose arrays
    with more dimensions. On a CPU, this is 1.37 times as fast as the reference, forward and backward, when followed by
    an activation function.
    """
    return pointwise_conv_reference(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return pointwise_conv_reference(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*residuals, gradient, cpu=_compute_flat_gradients, default=product_gradients)


pointwise_conv.defvjp(_forward, _backward)


def _compute_flat_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    flat_x = x.reshape(-1, x.shape[-1])
    gradient = lax.optimization_barrier(gradient.reshape(-1, gradient.shape[-1]))
    x_grad, kernel_grad = product_gradients(flat_x, kernel, gradient)
    return x_grad.reshape(x.shape), kernel_grad
