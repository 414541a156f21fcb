"""Batch normalisation with statistics per group of images, which do not depend on the number of devices."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.norm_activation import Activation


class BatchNorm(nn.Module):
    """Normalises each channel by the mean and variance of a group of images (Ioffe and Szegedy, 2015).

    In training, `group_size` consecutive images share statistics (Hoffer et al., 2017, "ghost" batch normalisation).
    The group size does not depend on the number of devices, so the results are the same on one device and on eight. The
    collection `batch_stats` contains `mean` and `var`, running averages of the mean and (biased) variance of groups.
    They are used at inference, and also in training if the norm is frozen.

    Statistics and normalisation are computed in float32; the result is cast to `dtype`.

    Attributes:
        group_size: number of images that share statistics in training; must divide the batch size. 0 for all images.
        momentum: decay rate of the running averages.
        epsilon: added to the variance.
        activation: applied after the normalisation: 'linear' (none), 'swish' or 'relu6'.
        frozen: whether to use the stored statistics in training as well.
        dtype: dtype of the result.
        param_dtype: dtype of `scale` and `bias`.
        ops: implementation of the operation.
    """

    group_size: int = 0
    momentum: float = 0.99
    epsilon: float = 1e-3
    activation: Activation = "linear"
    frozen: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """Normalises `x` and applies the activation.

        Raises:
            ValueError: the group size does not divide the batch size.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)

        if not train or self.frozen:
            stored = running_mean.value, running_var.value
            out = self.ops.stored_norm_activation(x, *stored, scale, bias, self.epsilon, self.activation)
            return out.astype(self.dtype)

        groups = self._count_groups(x.shape[0])
        shift = lax.stop_gradient(running_mean.value)
        out, mean, var = self.ops.norm_activation(x, scale, bias, shift, groups, self.epsilon, self.activation)
        if not self.is_initializing():
            for running, group_values in ((running_mean, mean), (running_var, var)):
                batch_value = lax.stop_gradient(jnp.mean(group_values, axis=0))
                running.value = self.momentum * running.value + (1 - self.momentum) * batch_value
        return out.astype(self.dtype)

    def _count_groups(self, batch: int) -> int:
        if self.group_size == 0 or self.is_initializing():
            return 1
        if batch % self.group_size:
            raise ValueError(
                f"norm_group_size {self.group_size} does not divide a batch of {batch} images; set it to a divisor, or "
                "to 0 for statistics over the whole batch"
            )
        return batch // self.group_size
