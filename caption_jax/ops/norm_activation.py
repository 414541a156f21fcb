"""Batch normalisation and the activation behind it as one operation (Ioffe and Szegedy, 2015)."""

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
    """Normalises by the statistics of groups of consecutive images, then scales, shifts and activates.

    Args:
        x: any float type; the arithmetic is float32.
        scale: float32.
        bias: float32.
        shift: any values near the means, for forms that sum squares in one pass: they sum about it, so that the
            difference of two large numbers does not arise. This one takes two passes and does not read it.
        groups: number of groups, all of one size.
        epsilon: added to the variance.
        activation: 'linear' (none), 'swish' or 'relu6'.

    Returns:
        The result in the dtype of `x`, and the groups' means and biased variances in float32. Only the result has a
        gradient, and only in `x`, `scale` and `bias`.
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
    """The same with stored statistics; the result is float32."""
    normalised = (x.astype(jnp.float32) - mean) * lax.rsqrt(var + epsilon)
    return _REFERENCE_ACTIVATIONS[activation](normalised * scale + bias)


def stored_norm_activation(
    x: Images, mean: Channels, var: Channels, scale: Channels, bias: Channels, epsilon: float, activation: Activation
) -> Images:
    """`stored_norm_activation_reference` with one multiplication less, and a sigmoid that is cheap on a CPU.

    Measured, without a gradient: 1.19.
    """
    return _normalise(x, mean, lax.rsqrt(var + epsilon), scale, bias, activation)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_activation(
    x: Images, scale: Channels, bias: Channels, shift: Channels, groups: int, epsilon: float, activation: Activation
) -> tuple[Images, Groups, Groups]:
    """`norm_activation_reference` that keeps its input and a few numbers per channel for its gradient.

    Autodiff keeps several arrays of the input's size. Here the backward pass computes the activation again; measured on
    a CPU, with the gradient: 1.63. Statistics
    are summed image by image, `x` is never reshaped: on an accelerator, which may lay a batch along the lanes of its
    vectors, an axis of groups would have the whole of `x` copied (`python -m benchmarks.encoder_bytes`).
    """
    return _forward(x, scale, bias, shift, groups, epsilon, activation)[0]


# The fast activations and their derivatives: functions of the normalised, scaled and shifted value.
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

    # A CPU's sums read what they add up from memory: it is better written there once.
    gradient = lax.platform_dependent(
        x, gradients[0], cpu=lambda *a: lax.optimization_barrier(before_activation(*a)), default=before_activation
    )
    total = _group_sum(gradient, groups)
    moment = (_group_sum(gradient * x.astype(jnp.float32), groups) - mean * total) * inverse
    along = (x.astype(jnp.float32) - image_mean) * _per_image(inverse * moment, x)
    change = gradient - (_per_image(total, x) + along) / count
    to_scale, to_bias = (jnp.sum(per_group, axis=0) for per_group in (moment, total))
    return (change * (image_inverse * scale)).astype(x.dtype), to_scale, to_bias, jnp.zeros_like(scale)


norm_activation.defvjp(_forward, _backward)


def _moments(x: Images, shift: Channels, groups: int) -> tuple[Groups, Groups]:
    """Mean and biased variance of each group in one pass over `x`, both taken about `shift`."""
    count = x.size // (groups * x.shape[-1])
    centred = x.astype(jnp.float32) - shift
    mean, square = (_group_sum(values, groups) / count for values in (centred, centred * centred))
    return mean + shift, jnp.maximum(square - mean * mean, 0.0)


def _group_sum(x: Images, groups: int) -> Groups:
    if groups == 1:
        return jnp.sum(x, axis=(0, 1, 2))[None]
    return jnp.sum(jnp.sum(x, axis=(1, 2)).reshape(groups, -1, x.shape[-1]), axis=1)


def _per_image(per_group: Groups, x: Images) -> Float[Array, "images 1 1 channels"]:
    """The numbers of each image's group, for each image of `x`; for all of them at once where there is one group."""
    groups = per_group.shape[0]
    per_image = per_group if groups == 1 else jnp.repeat(per_group, x.shape[0] // groups, axis=0)
    return per_image[:, None, None, :]


def _normalise(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activation: Activation) -> Array:
    return _ACTIVATIONS[activation]((x.astype(jnp.float32) - mean) * (inverse * scale) + bias)


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5  # without the division, which costs as much as the rest on a CPU
