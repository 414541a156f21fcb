"""Multi-head attention for the decoder: causal self-attention with a KV cache, and cross-attention to the memory."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import LayerCache
from caption_jax.models.layers import Dense
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.segments import Segments


def _make_dense(features: int, scale: float, module: nn.Module, name: str) -> Dense:
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    settings = {"dtype": module.dtype, "param_dtype": module.param_dtype, "ops": module.ops}
    return Dense(features, kernel_init=init, name=name, **settings)


class SelfAttention(nn.Module):
    """Causal self-attention within each caption.

    Attributes:
        width: feature size of the inputs and outputs.
        heads: number of heads; must divide `width`.
        output_scale: variance scale of the initial output projection.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        self.qkv = _make_dense(3 * self.width, 1.0, self, "qkv")
        self.out = _make_dense(self.width, self.output_scale, self, "out")

    def __call__(
        self,
        x: Float[Array, "*rows tokens width"],
        segments: Segments,
        cache: LayerCache | None = None,
        position: int | Int[Array, ""] | None = None,
        visible: Bool[Array, "pools targets slots"] | None = None,
    ) -> tuple[Float[Array, "*rows tokens width"], LayerCache | None]:
        """Returns the attention output, and the cache with the new keys and values written at `position`.

        With a cache, `visible` is True for the slots that each token may attend to (`Cache.visible_slots`). Without a
        cache, a token attends to itself and the preceding tokens of its caption, which `segments` defines.
        """
        qkv = self.qkv(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, self.width // self.heads)
        if cache is None:
            output = self.ops.caption_attention(qkv, segments)
        else:
            output, cache = self._attend_to_cache(qkv, cache, position, visible)
        return self.out(output), cache

    def _attend_to_cache(
        self,
        qkv: Float[Array, "batch rows length 3 heads depth"],
        cache: LayerCache,
        position: int | Int[Array, ""],
        visible: Bool[Array, "pools targets slots"],
    ) -> tuple[Float[Array, "batch rows length width"], LayerCache]:
        batch, rows, length, *features = qkv.shape
        # The rows of a group share a pool. Their tokens are arranged in step-major order, like the slots of the pool.
        pools = cache.keys.shape[0]
        rows_per_pool = batch * rows // pools
        qkv = qkv.reshape(pools, rows_per_pool, length, *features).swapaxes(1, 2)
        qkv = qkv.reshape(pools, length * rows_per_pool, *features)
        queries, keys, values = (qkv[:, :, i] for i in range(3))
        cache = cache.write(keys, values, position * rows_per_pool)
        output, _ = self.ops.attend(queries, cache.keys, cache.values, visible[:, None], decoding=True)
        output = output.reshape(pools, length, rows_per_pool, self.width).swapaxes(1, 2)
        return output.reshape(batch, rows, length, self.width), cache


class CrossAttention(nn.Module):
    """Cross-attention from the captions of an image to its memory.

    The memory, its keys and its values are stored once per image, not once per caption.

    Attributes:
        width: feature size of the inputs, memory and outputs.
        heads: number of heads; must divide `width`.
        output_scale: variance scale of the initial output projection.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    ops: Ops = FAST

    def setup(self):
        """Creates the submodules."""
        self.query = _make_dense(self.width, 1.0, self, "query")
        self.key_value = _make_dense(2 * self.width, 1.0, self, "key_value")
        self.out = _make_dense(self.width, self.output_scale, self, "out")

    def project(
        self, memory: Float[Array, "batch memory width"]
    ) -> tuple[Float[Array, "batch heads depth memory"], Float[Array, "batch heads memory depth"]]:
        """Returns the keys and values of the memory."""
        projected = self.key_value(memory).reshape(*memory.shape[:2], 2, self.heads, self.width // self.heads)
        return projected[:, :, 0].transpose(0, 2, 3, 1), projected[:, :, 1].swapaxes(1, 2)

    def __call__(
        self,
        x: Float[Array, "*rows tokens width"],
        keys: Float[Array, "batch heads depth memory"],
        values: Float[Array, "batch heads memory depth"],
        memory_mask: Bool[Array, "batch memory"] | None,
        segments: Segments,
        *,
        decoding: bool = False,
    ) -> tuple[Float[Array, "*rows tokens width"], Float[Array, "*rows heads tokens memory"]]:
        """Returns the attention output and the float32 attention weights over the projected memory."""
        queries = self.query(x).reshape(*x.shape[:-1], self.heads, self.width // self.heads)
        output, weights = self.ops.memory_attention(queries, keys, values, memory_mask, segments, decoding=decoding)
        return self.out(output), weights
