"""Batch normalisation (Ioffe and Szegedy, 2015) fused with the activation that follows it."""

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
    "linear": lambda z: z,
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
        shift: values close to the means. One-pass implementations subtract it before summing squares, to avoid
            catastrophic cancellation. Ignored by this two-pass implementation.
        groups: number of groups of equal size.
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
    """`stored_norm_activation_reference` with one multiplication fewer, and a sigmoid that is cheap on a CPU.

    Speedup, without a gradient: 1.19.
    """
    return _normalise(x, mean, lax.rsqrt(var + epsilon), scale, bias, activation)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_activation(
    x: Images, scale: Channels, bias: Channels, shift: Channels, groups: int, epsilon: float, activation: Activation
) -> tuple[Images, Groups, Groups]:
    """`norm_activation_reference`, which saves only its input and a few numbers per channel for the backward pass.

    Autodiff would save several arrays of the input's size. Here the backward pass recomputes the activation. Speedup on
    a CPU, including the gradient: 1.63. Statistics are summed per image first and `x` is never reshaped, because an
    accelerator may lay out the batch along its vector lanes, and splitting the batch axis into groups would copy all of
    `x` (`python -m benchmarks.encoder_bytes`).
    """
    return _forward(x, scale, bias, shift, groups, epsilon, activation)[0]


# The fast activations and their derivatives, as functions of the normalised values after scale and bias.
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda z: z,
    "swish": lambda z: z * _sigmoid(z),
    "relu6": lambda z: jnp.clip(z, 0.0, 6.0),
}
_DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "linear": jnp.ones_like,
    "swish": lambda z: _sigmoid(z) * (1.0 + z * (1.0 - _sigmoid(z))),
    "relu6": lambda z: ((z > 0.0) & (z < 6.0)).astype(z.dtype),
}


def _forward(x: Array, scale: Array, bias: Array, shift: Array, groups: int, epsilon: float, activation: Activation):
    mean, var = _moments(x, shift, groups)
    inverse = lax.rsqrt(var + epsilon)
    out = _normalise(x, _per_image(mean, x), _per_image(inverse, x), scale, bias, activation).astype(x.dtype)
    return (out, mean, var), (x, mean, inverse, scale, bias)


def _backward(
    groups: int, epsilon: float, activation: Activation, saved: tuple[Array, ...], gradients: tuple[Array, ...]
):
    x, mean, inverse, scale, bias = saved
    count = x.size // (groups * x.shape[-1])
    image_mean, image_inverse = _per_image(mean, x), _per_image(inverse, x)

    def before_activation(x: Array, gradient: Array) -> Array:
        gradient = gradient.astype(jnp.float32)
        if activation == "linear":
            return gradient
        values = _normalise(x, image_mean, image_inverse, scale, bias, "linear")
        return gradient * _DERIVATIVES[activation](values)

    # On a CPU, the sums read the gradient from memory, so it is better to materialise it once.
    gradient = lax.platform_dependent(
        x, gradients[0], cpu=lambda *a: lax.optimization_barrier(before_activation(*a)), default=before_activation
    )
    total = _group_sum(gradient, groups)
    moment = (_group_sum(gradient * x.astype(jnp.float32), groups) - mean * total) * inverse
    projection = (x.astype(jnp.float32) - image_mean) * _per_image(inverse * moment, x)
    centred_gradient = gradient - (_per_image(total, x) + projection) / count
    x_grad = (centred_gradient * (image_inverse * scale)).astype(x.dtype)
    scale_grad, bias_grad = (jnp.sum(per_group, axis=0) for per_group in (moment, total))
    return x_grad, scale_grad, bias_grad, jnp.zeros_like(scale)


norm_activation.defvjp(_forward, _backward)


def _moments(x: Images, shift: Channels, groups: int) -> tuple[Groups, Groups]:
    """Mean and biased variance of each group in one pass over `x`, computed from `x - shift`."""
    count = x.size // (groups * x.shape[-1])
    centred = x.astype(jnp.float32) - shift
    mean, square = (_group_sum(values, groups) / count for values in (centred, centred * centred))
    return mean + shift, jnp.maximum(square - mean * mean, 0.0)


def _group_sum(x: Images, groups: int) -> Groups:
    if groups == 1:
        return jnp.sum(x, axis=(0, 1, 2))[None]
    return jnp.sum(jnp.sum(x, axis=(1, 2)).reshape(groups, -1, x.shape[-1]), axis=1)


def _per_image(per_group: Groups, x: Images) -> Float[Array, "images 1 1 channels"]:
    """Repeats the values of each group for its images in `x`; broadcasts them if there is only one group."""
    groups = per_group.shape[0]
    per_image = per_group if groups == 1 else jnp.repeat(per_group, x.shape[0] // groups, axis=0)
    return per_image[:, None, None, :]


def _normalise(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activation: Activation) -> Array:
    return _ACTIVATIONS[activation]((x.astype(jnp.float32) - mean) * (inverse * scale) + bias)


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5  # avoids a division, which costs as much as everything else on a CPU
