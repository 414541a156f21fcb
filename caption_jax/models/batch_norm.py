"""Batch normalisation whose statistics belong to groups of images, not to what a device happens to hold."""

from __future__ import annotations

from collections.abc import Set

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


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
        frozen_norms: module paths ('image_encoder/backbone/stem/norm') that keep to their stored statistics.
        dtype: dtype of the result.
        param_dtype: dtype of `scale` and `bias`.
    """

    group_size: int = 0
    momentum: float = 0.99
    epsilon: float = 1e-3
    frozen_norms: Set[str] = frozenset()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Returns `x` normalised. Raises ValueError where the groups do not divide the batch."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)

        if not train or "/".join(self.path) in self.frozen_norms:
            return _affine(x, running_mean.value, running_var.value, scale, bias, self.epsilon).astype(self.dtype)

        groups = self._groups(x.shape[0])
        mean, var = _moments(x, lax.stop_gradient(running_mean.value), groups)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, var)):
                new = lax.stop_gradient(jnp.mean(new, axis=0))
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        mean, var = (_of_images(of_groups, x.shape[0]) for of_groups in (mean, var))
        return _affine(x, mean, var, scale, bias, self.epsilon).astype(self.dtype)

    def _groups(self, batch: int) -> int:
        if self.group_size == 0 or self.is_initializing():
            return 1
        if batch % self.group_size:
            raise ValueError(
                f"norm_group_size {self.group_size} does not divide a batch of {batch} images; choose a divisor, or 0 "
                "for statistics over the whole batch"
            )
        return batch // self.group_size


def _moments(
    x: Float[Array, "batch height width channels"], shift: Float[Array, " channels"], groups: int
) -> tuple[Float[Array, "groups channels"], Float[Array, "groups channels"]]:
    """Mean and biased variance of each group in one pass over `x`.

    Both are taken about `shift`, any value near the mean: the difference of two large numbers that makes the textbook
    one-pass variance inexact does not arise.

    Sums over pixels come first and groups are made of these, so that `x` itself is never reshaped: an accelerator may
    lay the images of a batch side by side in its vectors, where a group is no unit.
    """
    centred = x.astype(jnp.float32) - shift
    mean, square = (_group_mean(values, groups) for values in (centred, centred * centred))
    return mean + shift, jnp.maximum(square - mean * mean, 0.0)


def _group_mean(x: Float[Array, "batch height width channels"], groups: int) -> Float[Array, "groups channels"]:
    if groups == 1:
        return jnp.mean(x, axis=(0, 1, 2))[None]
    of_images = jnp.mean(x, axis=(1, 2))
    return jnp.mean(of_images.reshape(groups, -1, x.shape[-1]), axis=1)


def _of_images(of_groups: Float[Array, "groups channels"], batch: int) -> Float[Array, "images 1 1 channels"]:
    """The statistics that each image of the batch shares; one row where all share them."""
    groups = of_groups.shape[0]
    of_images = of_groups if groups == 1 else jnp.repeat(of_groups, batch // groups, axis=0)
    return of_images[:, None, None, :]


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return (x.astype(jnp.float32) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
