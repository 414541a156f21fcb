"""Layers that several modules use: linen's parameters and random streams around an operation of `ops`."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Int

from caption_jax.ops.dropout import Bits
from caption_jax.ops.forms import FAST, Ops


class Dense(nn.Module):
    """`x @ kernel + bias`, with the parameters of `nn.Dense`.

    Attributes:
        features: size of the output.
        kernel_init: of the kernel.
        dtype: of computation.
        param_dtype: of the parameters.
        ops: form of the matrix product.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return self.ops.dense(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Dropout(nn.Module):
    """Sets random elements to 0 and scales the others up, so that the mean stays (Srivastava et al., 2014).

    Attributes:
        rate: fraction of the elements set to 0, in [0, 1). 0 draws nothing.
        bits: random bits per element, 8 or 16; the rate is rounded to a multiple of 2 ** -bits.
        ops: form of the operation.
    """

    rate: float
    bits: Bits = 8
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], *, train: bool, ids: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch width"]:
        """Returns `x` as it is when not `train`; otherwise reads the random stream "dropout".

        `ids` numbers the rows of `x`, whose masks depend on their ids alone; None for their order.

        Raises:
            ValueError: the rate is outside [0, 1), or an unsupported number of bits.
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"a dropout rate in config.model is {self.rate}; it has to be in [0, 1)")
        if self.bits not in (8, 16):
            raise ValueError(f"config.model.decoder.dropout_bits is {self.bits}; it must be 8 or 16")
        if not train or self.rate == 0:
            return x
        return self.ops.dropout(self.make_rng("dropout"), x, self.rate, ids, self.bits)
