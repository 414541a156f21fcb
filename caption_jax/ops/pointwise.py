"""1 x 1 convolution, a matrix product over the channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from caption_jax.ops.dense import product_gradients_with_copy
from caption_jax.ops.mixed_precision import multiply, multiply_reference, product_gradients


def pointwise_conv_reference(
    x: Float[Array, "batch height width in_channels"], kernel: Float[Array, "in_channels out_channels"]
) -> Float[Array, "batch height width out_channels"]:
    """Returns `x @ kernel`, which mixes the channels at each spatial position.

    The kernel is cast to the dtype of `x`, which is also the dtype of the result.
    """
    return multiply_reference(x, kernel)


@jax.custom_vjp
def pointwise_conv(
    x: Float[Array, "batch height width in_channels"], kernel: Float[Array, "in_channels out_channels"]
) -> Float[Array, "batch height width out_channels"]:
    """`pointwise_conv_reference` with a gradient optimised for CPUs. The gradient of a float32 kernel is float32.

    The gradient consists of matrix products of [positions, channels] arrays, because XLA:CPU would transpose arrays
    with more dimensions. On a CPU, this is 1.31 times as fast as the reference, forward and backward, when followed by
    an activation function.
    """
    return multiply(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*residuals, gradient, cpu=_compute_flat_gradients, default=product_gradients)


pointwise_conv.defvjp(_forward, _backward)


def _compute_flat_gradients(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    flat_x = x.reshape(-1, x.shape[-1])
    gradient = lax.optimization_barrier(gradient.reshape(-1, gradient.shape[-1]))
    # In bfloat16, only products without a transposition use the matrix units.
    compute_gradients = product_gradients if x.dtype == jnp.float32 else product_gradients_with_copy
    x_grad, kernel_grad = compute_gradients(flat_x, kernel, gradient)
    return x_grad.reshape(x.shape), kernel_grad


def scaled_pointwise_conv_reference(
    x: Float[Array, "batch height width in_channels"],
    scales: Float[Array, "batch in_channels"],
    kernel: Float[Array, "in_channels out_channels"],
) -> Float[Array, "batch height width out_channels"]:
    """Computes `pointwise_conv_reference` of `x` times a factor per image and channel, as after squeeze-and-excite.

    Args:
        x: images.
        scales: factors, in the dtype of `x`.
        kernel: kernel, which is cast to the dtype of `x`.
    """
    return pointwise_conv_reference(x * scales[:, None, None, :], kernel)


# Smallest number of pixels per output channel for which scaling the kernel of each image is faster. With fewer pixels,
# the kernels of all images are almost as large as the images.
_MIN_PIXELS = 8


def scaled_pointwise_conv(
    x: Float[Array, "batch height width in_channels"],
    scales: Float[Array, "batch in_channels"],
    kernel: Float[Array, "in_channels out_channels"],
) -> Float[Array, "batch height width out_channels"]:
    """`scaled_pointwise_conv_reference`; on a CPU, the kernel is scaled instead of large images.

    The scaled images, and the gradient with respect to them, are never stored. This is 1.08 times as fast as the
    reference, forward and backward.
    """
    if x.shape[1] * x.shape[2] < _MIN_PIXELS * kernel.shape[-1]:
        return _scale_images(x, scales, kernel)
    return _scaled_pointwise_conv(x, scales, kernel)


def _scale_images(x: Array, scales: Array, kernel: Array) -> Array:
    return pointwise_conv(x * scales[:, None, None, :], kernel)


def _scale_kernels(x: Array, scales: Array, kernel: Array) -> Array:
    return jnp.einsum("bhwi,bio->bhwo", x, _make_kernels(x, scales, kernel))


def _make_kernels(x: Array, scales: Array, kernel: Array) -> Float[Array, "batch in_channels out_channels"]:
    return (scales[:, :, None] * kernel).astype(x.dtype)


@jax.custom_vjp
def _scaled_pointwise_conv(x: Array, scales: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, scales, kernel, cpu=_scale_kernels, default=_scale_images)


def _scaled_forward(x: Array, scales: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _scaled_pointwise_conv(x, scales, kernel), (x, scales, kernel)


def _scaled_backward(residuals: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    def differentiate(x: Array, scales: Array, kernel: Array, gradient: Array) -> tuple[Array, Array, Array]:
        return jax.vjp(_scale_images, x, scales, kernel)[1](gradient)

    return lax.platform_dependent(*residuals, gradient, cpu=_differentiate_scaled_kernels, default=differentiate)


_scaled_pointwise_conv.defvjp(_scaled_forward, _scaled_backward)


def _differentiate_scaled_kernels(
    x: Array, scales: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array, Array]:
    x_grad = jnp.einsum("bhwo,bio->bhwi", gradient, _make_kernels(x, scales, kernel))
    kernel_grads = jnp.einsum("bhwi,bhwo->bio", x, gradient, preferred_element_type=jnp.float32)
    scales_grad = jnp.sum(kernel_grads * kernel.astype(jnp.float32), axis=2)
    kernel_grad = jnp.sum(kernel_grads * scales[:, :, None].astype(jnp.float32), axis=0)
    return x_grad, scales_grad.astype(scales.dtype), kernel_grad.astype(kernel.dtype)
