"""Batch normalisation whose statistics belong to groups of images, not to what a device happens to hold.

A norm and the activation behind it are one op with its own derivative: it keeps its input and a few numbers a channel,
nothing of the input's size, and the backward pass computes the activation again.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Activation = Literal["linear", "swish", "relu6"]

# What follows a norm, and its derivative: functions of the normalised value.
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


class BatchNorm(nn.Module):
    """Normalises each channel by the mean and variance of a group of images (Ioffe and Szegedy, 2015).

    In training, `group_size` consecutive images share statistics (Hoffer et al., 2017, "ghost" batch normalisation); 0
    means the whole batch. The group is a property of the run, so the same batch gives the same result on one device and
    on eight. The collection `batch_stats` keeps running averages, `mean` and `var`, of the groups' means and (biased)
    variances; they are used outside training, and always for a module whose path is in `frozen_norms`.

    Statistics and the normalisation are float32; the result has dtype `dtype`.

    Attributes:
        group_size: images that share statistics in training; 0 for the whole batch. It must divide the batch.
        momentum: share of the running averages that a step keeps.
        epsilon: added to the variance.
        activation: what is applied to the normalised values: 'linear' (nothing), 'swish' or 'relu6'.
        frozen_norms: module paths ('image_encoder/backbone/stem/norm') that keep to their stored statistics.
        dtype: dtype of the result.
        param_dtype: dtype of `scale` and `bias`.
    """

    group_size: int = 0
    momentum: float = 0.99
    epsilon: float = 1e-3
    activation: Activation = "linear"
    frozen_norms: Set[str] = frozenset()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Returns `x` normalised and activated. Raises ValueError where the groups do not divide the batch."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)

        if not train or "/".join(self.path) in self.frozen_norms:
            inverse = lax.rsqrt(running_var.value + self.epsilon)
            return _normalise(x, running_mean.value, inverse, scale, bias, self.activation).astype(self.dtype)

        groups = self._groups(x.shape[0])
        shift = lax.stop_gradient(running_mean.value)
        out, mean, var = norm_activation(x, scale, bias, shift, groups, self.epsilon, self.activation)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, var)):
                new = lax.stop_gradient(jnp.mean(new, axis=0))
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return out.astype(self.dtype)

    def _groups(self, batch: int) -> int:
        if self.group_size == 0 or self.is_initializing():
            return 1
        if batch % self.group_size:
            raise ValueError(
                f"norm_group_size {self.group_size} does not divide a batch of {batch} images; choose a divisor, or 0 "
                "for statistics over the whole batch"
            )
        return batch // self.group_size


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_activation(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    shift: Float[Array, " channels"],
    groups: int,
    epsilon: float,
    activation: Activation,
) -> tuple[
    Float[Array, "batch height width channels"], Float[Array, "groups channels"], Float[Array, "groups channels"]
]:
    """Normalises `x` by the statistics of groups of consecutive images, then scales, shifts and activates it.

    Args:
        x: any float type; computed with in float32.
        scale: float32.
        bias: float32.
        shift: any values near the means, about which the sums are taken: the difference of two large numbers that makes
            the textbook one-pass variance inexact does not arise.
        groups: of equal size.
        epsilon: added to the variance.
        activation: of the result.

    Returns:
        The result in the dtype of `x`, and means and biased variances in float32. Only the result has a gradient, and
        only in `x`, `scale` and `bias`.
    """
    return _forward(x, scale, bias, shift, groups, epsilon, activation)[0]


def _forward(x: Array, scale: Array, bias: Array, shift: Array, groups: int, epsilon: float, activation: Activation):
    mean, var = _moments(x, shift, groups)
    inverse = lax.rsqrt(var + epsilon)
    of_images = _of_images(mean, x), _of_images(inverse, x)
    out = _normalise(x, *of_images, scale, bias, activation).astype(x.dtype)
    return (out, mean, var), (x, mean, inverse, scale, bias)


def _backward(
    groups: int, epsilon: float, activation: Activation, saved: tuple[Array, ...], gradients: tuple[Array, ...]
):
    x, mean, inverse, scale, bias = saved
    count = x.size // (groups * x.shape[-1])
    mean_of_images, inverse_of_images = _of_images(mean, x), _of_images(inverse, x)

    def slope(x: Array, gradient: Array) -> Array:
        """The gradient in the normalised, scaled and shifted values."""
        gradient = gradient.astype(jnp.float32)
        if activation == "linear":
            return gradient
        values = _normalise(x, mean_of_images, inverse_of_images, scale, bias, "linear")
        return gradient * _DERIVATIVES[activation](values)

    # A CPU's sums read what they add up from memory: it is better written there once.
    gradient = lax.platform_dependent(
        x, gradients[0], cpu=lambda *a: lax.optimization_barrier(slope(*a)), default=slope
    )
    total = _group_sum(gradient, groups)
    moment = (_group_sum(gradient * x.astype(jnp.float32), groups) - mean * total) * inverse
    along = (x.astype(jnp.float32) - mean_of_images) * _of_images(inverse * moment, x)
    change = gradient - (_of_images(total, x) + along) / count
    sums = (jnp.sum(of_groups, axis=0) for of_groups in (moment, total))
    return (change * (inverse_of_images * scale)).astype(x.dtype), *sums, jnp.zeros_like(scale)


norm_activation.defvjp(_forward, _backward)


def _moments(
    x: Float[Array, "batch height width channels"], shift: Float[Array, " channels"], groups: int
) -> tuple[Float[Array, "groups channels"], Float[Array, "groups channels"]]:
    """Mean and biased variance of each group in one pass over `x`, both taken about `shift`."""
    count = x.size // (groups * x.shape[-1])
    centred = x.astype(jnp.float32) - shift
    mean, square = (_group_sum(values, groups) / count for values in (centred, centred * centred))
    return mean + shift, jnp.maximum(square - mean * mean, 0.0)


def _group_sum(x: Float[Array, "batch height width channels"], groups: int) -> Float[Array, "groups channels"]:
    """Sums over each group's pixels, taken image by image: `x` is never reshaped.

    An accelerator may lay the images of a batch side by side in its vectors. A group is no unit there, and an axis of
    groups would have the whole of `x` copied.
    """
    if groups == 1:
        return jnp.sum(x, axis=(0, 1, 2))[None]
    return jnp.sum(jnp.sum(x, axis=(1, 2)).reshape(groups, -1, x.shape[-1]), axis=1)


def _of_images(
    of_groups: Float[Array, "groups channels"], x: Float[Array, "batch height width channels"]
) -> Float[Array, "images 1 1 channels"]:
    """What the images of each group share, for each image of `x`; for all of them at once where there is one group."""
    groups = of_groups.shape[0]
    of_images = of_groups if groups == 1 else jnp.repeat(of_groups, x.shape[0] // groups, axis=0)
    return of_images[:, None, None, :]


def _normalise(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activation: Activation) -> Array:
    return _ACTIVATIONS[activation]((x.astype(jnp.float32) - mean) * (inverse * scale) + bias)


def _sigmoid(z: Array) -> Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5  # without the division, which costs as much as the rest on a CPU
