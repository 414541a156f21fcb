"""Linen layers that wrap operations of `ops` with parameters and RNG streams."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from caption_jax.ops.dropout import Bits
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.mixed_precision import add_parameter

# Activations of the feed-forward networks, by name.
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),  # Hendrycks and Gimpel, 2016: x * normal_cdf(x)
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),  # faster approximation, with an error below 0.0005
}


class Dense(nn.Module):
    """`x @ kernel + bias`, with the parameters of `nn.Dense`.

    The parameters are not cast before the operations, whose gradients have the dtype of the parameters. In bfloat16,
    `nn.Dense` would round the gradients of float32 parameters, and sum them over devices in bfloat16.

    Attributes:
        features: number of output features.
        kernel_init: initializer of the kernel.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the matrix product.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies the layer to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x = x.astype(self.dtype)
        if self.has_variable("int8", "kernel"):  # see `stored_dtypes.restore`
            product = self.ops.int8_product(x, self.get_variable("int8", "kernel")).astype(self.dtype)
        else:
            product = self.ops.dense(x, kernel)
        return add_parameter(product, bias)


class Dropout(nn.Module):
    """Sets random elements to 0 and scales up the others to preserve the mean (Srivastava et al., 2014).

    Attributes:
        rate: fraction of the elements to set to 0, in [0, 1). If it is 0, no random bits are generated.
        bits: random bits per element, 8 or 16; the rate is rounded to a multiple of 2 ** -bits.
        ops: implementation of the operation.
    """

    rate: float
    bits: Bits = 8
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], *, train: bool, ids: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch width"]:
        """Applies dropout with the RNG stream "dropout" if `train`; otherwise returns `x` unchanged.

        Args:
            x: input array.
            train: whether to apply dropout.
            ids: id of each vector in `x`, which determines its mask. If None, vectors are numbered in order.

        Raises:
            ValueError: `rate` is outside [0, 1), or `bits` is neither 8 nor 16.
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rates in config.model must be in [0, 1), got {self.rate}")
        if self.bits not in (8, 16):
            raise ValueError(f"config.model.decoder.dropout_bits is {self.bits}; it must be 8 or 16")
        if not train or self.rate == 0:
            return x
        return self.ops.dropout(self.make_rng("dropout"), x, self.rate, ids, self.bits)


class FeedForward(nn.Module):
    """Two dense layers, with an activation and dropout in between."""

    width: int
    hidden: int
    dropout: float
    dropout_bits: Bits = 8
    activation: str = "gelu_tanh"
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], *, train: bool, ids: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch width"]:
        """Applies the network to each position independently; `ids` as in `Dropout`."""
        dense = {"dtype": self.dtype, "param_dtype": self.param_dtype, "ops": self.ops}
        x = ACTIVATIONS[self.activation](Dense(self.hidden, name="expand", **dense)(x))
        x = Dropout(self.dropout, self.dropout_bits, self.ops)(x, train=train, ids=ids)
        init = nn.initializers.variance_scaling(self.output_scale, "fan_in", "truncated_normal")
        return Dense(self.width, kernel_init=init, name="contract", **dense)(x)
