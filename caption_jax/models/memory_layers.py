"""Transformer encoder layers that relate the cells of an image to each other, before the decoder attends to them."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from caption_jax.models.attention import CrossAttention
from caption_jax.models.layers import Dropout, FeedForward
from caption_jax.ops.dropout import Bits
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.segments import Segments


class MemoryLayer(nn.Module):
    """Self-attention over all memory positions and a feed-forward network, with pre-norm residual connections.

    Attributes:
        width: feature size of the memory.
        heads: number of attention heads; must divide `width`.
        feed_forward: hidden width of the feed-forward network.
        dropout: dropout rate of the output of both sublayers, and inside the feed-forward network.
        dropout_bits: see `Dropout`.
        activation: activation of the feed-forward network, "gelu" or "gelu_tanh".
        output_scale: variance scale of the initial output projection of both sublayers.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.0
    dropout_bits: Bits = 8
    activation: str = "gelu_tanh"
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, memory: Float[Array, "batch memory width"], *, train: bool
    ) -> Float[Array, "batch memory width"]:
        """Returns the updated memory. Training with dropout requires the RNG stream "dropout"."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        settings = {**dtypes, "ops": self.ops}
        attention = CrossAttention(self.width, self.heads, self.output_scale, **settings, name="attention")
        network = FeedForward(
            self.width,
            self.feed_forward,
            self.dropout,
            self.dropout_bits,
            self.activation,
            self.output_scale,
            **settings,
            name="feed_forward",
        )
        dropout = Dropout(self.dropout, self.dropout_bits, self.ops)

        normalised = nn.LayerNorm(**dtypes, name="attention_norm")(memory)
        row_per_image = Segments.one_per_row(memory.shape[:-1])
        attended, _ = attention(normalised, *attention.project(normalised), None, row_per_image)
        memory = memory + dropout(attended, train=train)
        normalised = nn.LayerNorm(**dtypes, name="feed_forward_norm")(memory)
        return memory + dropout(network(normalised, train=train), train=train)


class MemoryEncoder(nn.Module):
    """A stack of `MemoryLayer`s, followed by a layer norm.

    Attributes:
        layers: number of layers, at least 1.
        width: see `MemoryLayer`, as for all other attributes.
    """

    layers: int
    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.0
    dropout_bits: Bits = 8
    activation: str = "gelu_tanh"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, memory: Float[Array, "batch memory width"], *, train: bool
    ) -> Float[Array, "batch memory width"]:
        """Returns the encoded memory. Training with dropout requires the RNG stream "dropout"."""
        for index in range(self.layers):
            layer = MemoryLayer(
                self.width,
                self.heads,
                self.feed_forward,
                self.dropout,
                self.dropout_bits,
                self.activation,
                1 / (2 * self.layers),  # the sum of all branches initially has the variance of a single unscaled one
                self.dtype,
                self.param_dtype,
                self.ops,
                name=f"layer_{index}",
            )
            memory = layer(memory, train=train)
        return nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="final_norm")(memory)
