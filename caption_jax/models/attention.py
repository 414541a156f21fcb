"""Multi-head attention for the decoder: causal self-attention over a cache, and cross-attention to a shared memory."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import LayerCache
from caption_jax.models.layers import Dense
from caption_jax.ops.forms import FAST, Ops
from caption_jax.ops.segments import Segments


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
        x: Float[Array, "*rows tokens width"],
        segments: Segments,
        cache: LayerCache | None = None,
        position: Int[Array, ""] | None = None,
        visible: Bool[Array, "pools targets slots"] | None = None,
    ) -> tuple[Float[Array, "*rows tokens width"], LayerCache | None]:
        """Attends, and returns the cache with the new keys and values written at `position`.

        `visible` says which cache slots a token may look at (`Cache.visible_slots`). Without a cache a token looks at
        itself and the tokens before it in its caption, which `segments` tells apart.
        """
        qkv = self.qkv(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, self.width // self.heads)
        if cache is None:
            mixed = self.ops.caption_attention(qkv, segments)
        else:
            mixed, cache = self._attend_to_cache(qkv, cache, position, visible)
        return self.out(mixed), cache

    def _attend_to_cache(
        self,
        qkv: Float[Array, "batch rows length 3 heads depth"],
        cache: LayerCache,
        position: Int[Array, ""],
        visible: Bool[Array, "pools targets slots"],
    ) -> tuple[Float[Array, "batch rows length width"], LayerCache]:
        batch, rows, length, *features = qkv.shape
        pools = cache.keys.shape[0]  # rows that share a pool are a group, step-major as its slots are
        members = batch * rows // pools
        qkv = qkv.reshape(pools, members, length, *features).swapaxes(1, 2)
        qkv = qkv.reshape(pools, length * members, *features)
        queries, keys, values = (qkv[:, :, part] for part in range(3))
        cache = cache.write(keys, values, position * members)
        mixed, _ = self.ops.attend(queries, cache.keys, cache.values, visible[:, None], decoding=True)
        mixed = mixed.reshape(pools, length, members, self.width).swapaxes(1, 2)
        return mixed.reshape(batch, rows, length, self.width), cache


class CrossAttention(nn.Module):
    """Attention of all captions of an image to the image's one memory.

    The memory and its keys and values exist once per image.

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
        x: Float[Array, "*rows tokens width"],
        keys: Float[Array, "batch heads depth slots"],
        values: Float[Array, "batch heads slots depth"],
        memory_mask: Bool[Array, "batch slots"] | None,
        segments: Segments,
        *,
        decoding: bool = False,
    ) -> tuple[Float[Array, "*rows tokens width"], Float[Array, "*rows heads tokens slots"]]:
        """Attends to projected memory; returns the outputs and the float32 weights."""
        queries = self.query(x).reshape(*x.shape[:-1], self.heads, self.width // self.heads)
        mixed, weights = self.ops.memory_attention(queries, keys, values, memory_mask, segments, decoding=decoding)
        return self.out(mixed), weights
