"""Multi-head attention for the decoder: causal self-attention over a cache, and cross-attention to a shared memory."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import LayerCache
from caption_jax.models.layers import Dense
from caption_jax.models.packing import Packing
from caption_jax.ops.forms import FAST, Ops


def _dense(features: int, scale: float, module: nn.Module, name: str) -> Dense:
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    settings = {"dtype": module.dtype, "param_dtype": module.param_dtype, "ops": module.ops}
    return Dense(features, kernel_init=init, name=name, **settings)


class SelfAttention(nn.Module):
    """Causal self-attention of each caption over itself.

    Attributes:
        width: of inputs and outputs.
        heads: number of heads; divides `width`.
        output_scale: variance scale of the initial output projection.
        dtype: of computation.
        param_dtype: of the parameters.
        ops: form of the operations.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        self.qkv = _dense(3 * self.width, 1.0, self, "qkv")
        self.out = _dense(self.width, self.output_scale, self, "out")

    def __call__(
        self,
        x: Float[Array, "*tokens width"],
        cache: LayerCache | None = None,
        position: Int[Array, ""] | None = None,
        visible: Bool[Array, "pools targets slots"] | None = None,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "*tokens width"], LayerCache | None]:
        """Attends, and returns the cache with the new keys and values written at `position`.

        `visible` says which cache slots a token may look at (`Cache.visible_slots`). Without a cache a token sees
        itself and the tokens before it. Tokens are [batch, rows, length], or as `packing` has them.
        """
        joined = self.qkv(x) if packing is None else packing.unpack(self.qkv(x))
        batch, rows, length, _ = joined.shape
        # Without a cache each caption is a group of its own; with one, those that share a pool are, step-major.
        pools = batch * rows if cache is None else cache.keys.shape[0]
        joined = joined.reshape(pools, -1, length, 3, self.heads, self.width // self.heads)
        members = joined.shape[1]
        joined = joined.swapaxes(1, 2).reshape(pools, length * members, *joined.shape[3:])
        queries, keys, values = joined[:, :, 0], joined[:, :, 1], joined[:, :, 2]
        if cache is None:
            keys, values = keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)
            visible = jnp.tril(jnp.ones((1, length, length), bool))
        else:
            cache = cache.write(keys, values, position * members)
            keys, values = cache.keys, cache.values
        mixed, _ = self.ops.attend(queries, keys, values, visible[:, None], decoding=cache is not None)
        mixed = mixed.reshape(pools, length, members, self.width).swapaxes(1, 2)
        mixed = mixed.reshape(batch, rows, length, self.width)
        return self.out(mixed if packing is None else packing.pack(mixed)), cache


class CrossAttention(nn.Module):
    """Attention of all captions of an image to the image's one memory.

    The rows of an image are laid side by side as targets, so the memory and its keys and values exist once.

    Attributes:
        width: of inputs, memory and outputs.
        heads: number of heads; divides `width`.
        output_scale: variance scale of the initial output projection.
        dtype: of computation.
        param_dtype: of the parameters.
        ops: form of the operations.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        self.query = _dense(self.width, 1.0, self, "query")
        self.key_value = _dense(2 * self.width, 1.0, self, "key_value")
        self.out = _dense(self.width, self.output_scale, self, "out")

    def project(
        self, memory: Float[Array, "batch slots width"]
    ) -> tuple[Float[Array, "batch heads depth slots"], Float[Array, "batch heads slots depth"]]:
        """Keys and values of the memory."""
        joined = self.key_value(memory).reshape(*memory.shape[:2], 2, self.heads, self.width // self.heads)
        return joined[:, :, 0].transpose(0, 2, 3, 1), joined[:, :, 1].swapaxes(1, 2)

    def __call__(
        self,
        x: Float[Array, "*tokens width"],
        keys: Float[Array, "batch heads depth slots"],
        values: Float[Array, "batch heads slots depth"],
        memory_mask: Bool[Array, "batch slots"] | None = None,
        *,
        decoding: bool = False,
        packing: Packing | None = None,
    ) -> tuple[Float[Array, "*tokens width"], Float[Array, "batch rows heads length slots"]]:
        """Attends to projected memory; returns the outputs and the float32 weights.

        Tokens are [batch, rows, length], or as `packing` has them.
        """
        queries = self.query(x) if packing is None else packing.unpack(self.query(x))
        batch, rows, length, _ = queries.shape
        queries = queries.reshape(batch, rows * length, self.heads, self.width // self.heads)
        mask = None if memory_mask is None else memory_mask[:, None, None, :]
        mixed, weights = self.ops.attend(queries, keys, values, mask, decoding=decoding)
        weights = weights.reshape(batch, self.heads, rows, length, -1).swapaxes(1, 2)
        mixed = mixed.reshape(batch, rows, length, self.width)
        return self.out(mixed if packing is None else packing.pack(mixed)), weights
