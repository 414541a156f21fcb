"""Multi-head attention for the decoder: causal self-attention over a cache, and cross-attention to a shared memory."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import LayerCache, write_rows

# Finite, so that a row whose memory is wholly masked gives a mean rather than NaN.
_MASKED = -1e30


def attend(
    queries: Float[Array, "groups targets heads depth"],
    keys: Float[Array, "groups sources heads depth"],
    values: Float[Array, "groups sources heads depth"],
    mask: Bool[Array, " ..."] | None,
) -> tuple[Float[Array, "groups targets width"], Float[Array, "groups heads targets sources"]]:
    """Scaled dot-product attention (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), softmax in float32.

    Args:
        queries: projected queries.
        keys: projected keys.
        values: projected values.
        mask: True where a target may look, broadcast to [groups, heads, targets, sources]; None for everywhere.

    Returns:
        The mixed values, heads joined, in the dtype of `values`; and the weights in float32.
    """
    depth = queries.shape[-1]
    scores = jnp.einsum("gqhd,gnhd->ghqn", queries * depth**-0.5, keys, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("ghqn,gnhd->gqhd", weights.astype(values.dtype), values)
    return mixed.reshape(*mixed.shape[:2], -1), weights


def _dense(features: int, scale: float, module: nn.Module, name: str) -> nn.Dense:
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nn.Dense(features, kernel_init=init, dtype=module.dtype, param_dtype=module.param_dtype, name=name)


class SelfAttention(nn.Module):
    """Causal self-attention of each caption over itself.

    Attributes:
        width: of inputs and outputs.
        heads: number of heads; divides `width`.
        output_scale: variance scale of the initial output projection.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        self.qkv = _dense(3 * self.width, 1.0, self, "qkv")
        self.out = _dense(self.width, self.output_scale, self, "out")

    def __call__(
        self,
        x: Float[Array, "batch rows length width"],
        cache: LayerCache | None = None,
        position: Int[Array, ""] | None = None,
        mask: Bool[Array, "batch rows length slots"] | None = None,
    ) -> tuple[Float[Array, "batch rows length width"], LayerCache | None]:
        """Attends, and returns the cache with the new keys and values written at `position`.

        `mask` says which cache slots a token may look at (`Cache.visible_slots`). Without a cache a token sees itself
        and the tokens before it.
        """
        batch, rows, length, _ = x.shape
        joined = self.qkv(x).reshape(batch, rows, length, 3, self.heads, self.width // self.heads)
        queries, keys, values = joined[..., 0, :, :], joined[..., 1, :, :], joined[..., 2, :, :]
        if cache is None:
            flat = (batch * rows, length, *queries.shape[3:])
            causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
            mixed, _ = attend(queries.reshape(flat), keys.reshape(flat), values.reshape(flat), causal)
        else:
            cache = cache.replace(
                keys=write_rows(cache.keys, keys, position), values=write_rows(cache.values, values, position)
            )
            flat = (batch, rows * length, *queries.shape[3:])
            mask = mask.reshape(batch, 1, rows * length, -1)
            mixed, _ = attend(queries.reshape(flat), cache.keys, cache.values, mask)
        return self.out(mixed.reshape(x.shape)), cache


class CrossAttention(nn.Module):
    """Attention of all captions of an image to the image's one memory.

    The rows of an image are laid side by side as targets, so the memory and its keys and values exist once.

    Attributes:
        width: of inputs, memory and outputs.
        heads: number of heads; divides `width`.
        output_scale: variance scale of the initial output projection.
    """

    width: int
    heads: int
    output_scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        self.query = _dense(self.width, 1.0, self, "query")
        self.key_value = _dense(2 * self.width, 1.0, self, "key_value")
        self.out = _dense(self.width, self.output_scale, self, "out")

    def project(
        self, memory: Float[Array, "batch slots width"]
    ) -> tuple[Float[Array, "batch slots heads depth"], Float[Array, "batch slots heads depth"]]:
        """Keys and values of the memory."""
        joined = self.key_value(memory).reshape(*memory.shape[:2], 2, self.heads, self.width // self.heads)
        return joined[:, :, 0], joined[:, :, 1]

    def __call__(
        self,
        x: Float[Array, "batch rows length width"],
        keys: Float[Array, "batch slots heads depth"],
        values: Float[Array, "batch slots heads depth"],
        memory_mask: Bool[Array, "batch slots"] | None = None,
    ) -> tuple[Float[Array, "batch rows length width"], Float[Array, "batch rows heads length slots"]]:
        """Attends to projected memory; returns the outputs and the float32 weights."""
        batch, rows, length, _ = x.shape
        queries = self.query(x).reshape(batch, rows * length, self.heads, self.width // self.heads)
        mask = None if memory_mask is None else memory_mask[:, None, None, :]
        mixed, weights = attend(queries, keys, values, mask)
        weights = weights.reshape(batch, self.heads, rows, length, -1).swapaxes(1, 2)
        return self.out(mixed.reshape(x.shape)), weights
