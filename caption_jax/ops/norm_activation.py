"""Batch normalisation (Ioffe and Szegedy, 2015), fused with the activation that follows it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activation = Literal["linear", "swish", "relu6"]
Images = Float[Array, "batch height width channels"]
Channels = Float[Array, " channels"]
Groups = Float[Array, "groups channels"]

_REFERENCE_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "swish": jax.nn.swish,
    "relu6": jax.nn.relu6,
}


def norm_activation_reference(
    x: Images, scale: Channels, bias: Channels, shift: Channels, groups: int, epsilon: float, activation: Activation
) -> tuple[Images, Groups, Groups]:
    """Normalises by the statistics of groups of consecutive images, then applies scale, bias and activation.

    Args:
        x: images of any float dtype; computations are in float32.
        scale: float32 scale.
        bias: float32 bias.
        shift: values close to the means, which one-pass implementations subtract before summing squares to avoid
            catastrophic cancellation. This two-pass implementation ignores them.
        groups: number of groups, all of the same size.
        epsilon: added to the variance.
        activation: 'linear' (none), 'swish' or 'relu6'.

    Returns:
        The result in the dtype of `x`, and the means and biased variances of the groups in float32. Only the result is
        differentiable, and only with respect to `x`, `scale` and `bias`.
    """
    del shift
    grouped = x.astype(jnp.float32).reshape(groups, -1, *x.shape[1:])
    mean = grouped.mean((1, 2, 3), keepdims=True)
    var = grouped.var((1, 2, 3), keepdims=True)
    normalised = ((grouped - mean) * lax.rsqrt(var + epsilon)).reshape(x.shape)
    out = _REFERENCE_ACTIVATIONS[activation](normalised * scale + bias).astype(x.dtype)
    return out, *(lax.stop_gradient(moment.reshape(groups, -1)) for moment in (mean, var))


def stored_norm_activation_reference(
    x: Images, mean: Channels, var: Channels, scale: Channels, bias: Channels, epsilon: float, activation: Activation
) -> Images:
    """`norm_activation_reference` with stored statistics. The result is float32."""
    normalised = (x.astype(jnp.float32) - mean) * lax.rsqrt(var + epsilon)
    return _REFERENCE_ACTIVATIONS[activation](normalised * scale + bias)


def stored_norm_activation(
    x: Images, mean: Channels, var: Channels, scale: Channels, bias: Channels, epsilon: float, activation: Activation
) -> Images:
    """`stored_norm_activation_reference`, with one multiplication fewer and a sigmoid that is fast on a CPU.

    On a CPU, this is 1.73 times as fast as the reference, forward only.
    """
    return _normalise(x, mean, lax.rsqrt(var + epsilon), scale, bias, activation)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_activation(
    x: Images, scale: Channels, bias: Channels, shift: Channels, groups: int, epsilon: float, activation: Activation
) -> tuple[Images, Groups, Groups]:
    """`norm_activation_reference`, but saving only its input and a few values per channel for the backward pass.

    Autodiff would save several arrays of the same size as the input. Here the backward pass recomputes the activation.
    On a CPU, this is 1.69 times as fast as the reference, forward and backward. Statistics are summed per image first
    and `x` is never reshaped, because an accelerator may lay out the batch along its vector lanes, and splitting the
    batch axis into groups would copy all of `x` (`python -m benchmarks.encoder_bytes`).
    """
    return _forward(x, scale, bias, shift, groups, epsilon, activation)[0]


# Fast activations and their derivatives, as functions of the normalised values after scale and bias.
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "swish": lambda x: x * _sigmoid(x),
    "relu6": lambda x: jnp.clip(x, 0.0, 6.0),
}
_DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "linear": jnp.ones_like,
    "swish": lambda x: _sigmoid(x) * (1.0 + x * (1.0 - _sigmoid(x))),
    "relu6": lambda x: ((x > 0.0) & (x < 6.0)).astype(x.dtype),
}


def _forward(x: Array, scale: Array, bias: Array, shift: Array, groups: int, epsilon: float, activation: Activation):
    mean, var = _compute_moments(x, shift, groups)
    inverse = lax.rsqrt(var + epsilon)
    image_mean, image_inverse = _broadcast_to_images(mean, x), _broadcast_to_images(inverse, x)
    out = _normalise(x, image_mean, image_inverse, scale, bias, activation).astype(x.dtype)
    return (out, mean, var), (x, mean, inverse, scale, bias)


def _backward(
    groups: int, epsilon: float, activation: Activation, residuals: tuple[Array, ...], gradients: tuple[Array, ...]
):
    x, mean, inverse, scale, bias = residuals
    count = x.size // (groups * x.shape[-1])
    image_mean, image_inverse = _broadcast_to_images(mean, x), _broadcast_to_images(inverse, x)

    def backward_activation(x: Array, gradient: Array) -> Array:
        gradient = gradient.astype(jnp.float32)
        if activation == "linear":
            return gradient
        # Not the formula of `_normalise`: XLA:CPU would then store the sigmoid of the forward pass for this one.
        values = (x.astype(jnp.float32) - image_mean) * (image_inverse * scale) + bias
        return gradient * _DERIVATIVES[activation](values)

    def materialise_on_cpu(x: Array, gradient: Array) -> Array:
        # The sums below read the gradient from memory on a CPU, so computing it once is faster.
        return lax.optimization_barrier(backward_activation(x, gradient))

    gradient = lax.platform_dependent(x, gradients[0], cpu=materialise_on_cpu, default=backward_activation)
    total = _sum_groups(gradient, groups)
    moment = (_sum_groups(gradient * x.astype(jnp.float32), groups) - mean * total) * inverse
    projection = (x.astype(jnp.float32) - image_mean) * _broadcast_to_images(inverse * moment, x)
    centred_gradient = gradient - (_broadcast_to_images(total, x) + projection) / count
    x_grad = (centred_gradient * (image_inverse * scale)).astype(x.dtype)
    scale_grad, bias_grad = (jnp.sum(per_group, axis=0) for per_group in (moment, total))
    return x_grad, scale_grad, bias_grad, jnp.zeros_like(scale)


norm_activation.defvjp(_forward, _backward)


def _compute_moments(x: Images, shift: Channels, groups: int) -> tuple[Groups, Groups]:
    """Computes the mean and biased variance of each group, from the sums of `x` and of the squares of `x - shift`.

    The sums do not share `x - shift`, because XLA:CPU would store an array that two sums read.
    """
    count = x.size // (groups * x.shape[-1])
    values = x.astype(jnp.float32)
    centred = values - shift
    mean, square = (_sum_groups(summands, groups) / count for summands in (values, centred * centred))
    return mean, jnp.maximum(square - jnp.square(mean - shift), 0.0)


def _sum_groups(x: Images, groups: int) -> Groups:
    if groups == 1:
        return jnp.sum(x, axis=(0, 1, 2))[None]
    return jnp.sum(jnp.sum(x, axis=(1, 2)).reshape(groups, -1, x.shape[-1]), axis=1)


def _broadcast_to_images(per_group: Groups, x: Images) -> Float[Array, "images 1 1 channels"]:
    """Repeats the values of each group for its images in `x`; a single group keeps a batch axis of length 1."""
    groups = per_group.shape[0]
    per_image = per_group if groups == 1 else jnp.repeat(per_group, x.shape[0] // groups, axis=0)
    return per_image[:, None, None, :]


def _normalise(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activation: Activation) -> Array:
    factor = inverse * scale
    return _ACTIVATIONS[activation](x.astype(jnp.float32) * factor + (bias - mean * factor))


def _sigmoid(x: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * x) + 0.5  # avoids a division, which would take half of the run time on a CPU
