"""Vision Transformer (Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929).

Also implements SigLIP's image tower (Zhai et al., 2023, https://arxiv.org/abs/2303.15343), which has no class token and
uses the tanh approximation of GELU.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from caption_jax.models.backbones.vit_sizes import SIZES, Size
from caption_jax.models.layers import Dense
from caption_jax.ops.mixed_precision import add_parameter


class VisionTransformer(nn.Module):
    """A ViT up to its final layer norm, without pooling or classifier.

    The parameter paths are `embed/{patches/kernel,patches/bias,class_token,position}`, `norm/{scale,bias}`, and for
    block 0 `block_0/{attention_norm,feed_forward_norm}/{scale,bias}`, `block_0/attention/{qkv,out}/{kernel,bias}` and
    `block_0/feed_forward/{expand,contract}/{kernel,bias}`.

    Attributes:
        size: a key of `SIZES`.
        class_token, gelu, norm_epsilon: see `ViTSettings`.
        drop_path: probability that an image skips a branch of the last block (stochastic depth, Huang et al., 2016); it
            increases linearly from 0 at the first block. A block whose norms are all frozen is never skipped.
        frozen_norms: paths within this module ('block_0/attention_norm') of norms whose parameters are frozen.
        dtype: computation dtype; norm statistics and softmax are always float32.
        param_dtype: dtype of the parameters.
    """

    size: str = "s16"
    class_token: bool = True
    gelu: Literal["exact", "tanh"] = "exact"
    norm_epsilon: float = 1e-6
    drop_path: float = 0.0
    frozen_norms: Set[str] = frozenset()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch rows columns inputs"] | Float[Array, "batch tokens inputs"],
        *,
        train: bool,
        start_after: str = "",
        stop_after: str = "",
    ) -> Float[Array, "batch h w features"] | Float[Array, "batch tokens features"]:
        """Returns features of normalised square images: [batch, height / 16, width / 16, 384] for S/16.

        Args:
            images: normalised pixels, or the output of the stage `start_after`.
            train: enables stochastic depth, which requires the RNG stream "dropout".
            start_after: runs only the stages after this one ("embed", "block_0", ..., "norm").
            stop_after: runs only the stages up to this one, and returns its output: tokens, or the feature grid after
                "norm".

        Raises:
            ValueError: a stage is unknown, or the images cannot be split into patches.
        """
        size = SIZES[self.size]
        stages = size.stage_names[_count_stages(size, start_after) : _count_stages(size, stop_after) or None]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = images.astype(self.dtype)
        if "embed" in stages:
            x = Embedding(size.width, size.patch, self.class_token, **dtypes, name="embed")(x)
        for index in range(size.blocks):
            name, rate = f"block_{index}", self.drop_path * index / (size.blocks - 1)
            is_frozen = {f"{name}/attention_norm", f"{name}/feed_forward_norm"} <= self.frozen_norms
            block = Block(size.heads, self.gelu, self.norm_epsilon, 0.0 if is_frozen else rate, **dtypes, name=name)
            x = block(x, train=train) if name in stages else x
        if "norm" not in stages:
            return x
        x = nn.LayerNorm(self.norm_epsilon, **dtypes, name="norm")(x)
        patches = x[:, 1:] if self.class_token else x
        side = math.isqrt(patches.shape[1])
        return patches.reshape(x.shape[0], side, side, size.width)


class Embedding(nn.Module):
    """Linear patch embedding, an optional class token and learned position embeddings.

    Attributes:
        width: feature size of a token.
        patch: patch size in pixels.
        class_token: whether to prepend a class token.
    """

    width: int
    patch: int
    class_token: bool
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch rows columns 3"]) -> Float[Array, "batch tokens width"]:
        """Returns the tokens of the patches in row-major order, after the class token if there is one.

        Raises:
            ValueError: the images are not square, or their side length is not a multiple of the patch size.
        """
        batch, height, width, channels = images.shape
        if height != width or height % self.patch:
            raise ValueError(
                f"a ViT with {self.patch} x {self.patch} patches needs square images whose side is a multiple of "
                f"{self.patch}, got {height} x {width}; set config.data.image_size to such a multiple"
            )
        side = height // self.patch
        patches = images.reshape(batch, side, self.patch, side, self.patch, channels).swapaxes(2, 3)
        x = _make_dense(self, self.width, "patches")(patches.reshape(batch, side * side, -1))
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros, (self.width,), self.param_dtype)
            token = jnp.broadcast_to(token, (batch, 1, self.width)).astype(self.dtype)  # its gradient is not rounded
            x = jnp.concatenate([token, x], axis=1)
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:], self.param_dtype)
        return add_parameter(x, position)


class Block(nn.Module):
    """Pre-norm self-attention and a pre-norm feed-forward network, each with a residual connection.

    Attributes:
        heads: number of attention heads.
        gelu: see `ViTSettings`.
        norm_epsilon: epsilon of the layer norms.
        drop_path: probability that an image skips a branch in training.
    """

    heads: int
    gelu: Literal["exact", "tanh"]
    norm_epsilon: float
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], *, train: bool) -> Float[Array, "batch tokens width"]:
        """Returns the output tokens. Training with `drop_path` requires the RNG stream "dropout"."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # One mask value per image, so a branch is either dropped as a whole or scaled up to preserve the mean.
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        y = nn.LayerNorm(self.norm_epsilon, **dtypes, name="attention_norm")(x)
        x = x + drop(SelfAttention(self.heads, **dtypes, name="attention")(y))
        y = nn.LayerNorm(self.norm_epsilon, **dtypes, name="feed_forward_norm")(x)
        return x + drop(FeedForward(self.gelu, **dtypes, name="feed_forward")(y))


class SelfAttention(nn.Module):
    """Self-attention over all tokens of an image (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762).

    Attributes:
        heads: number of heads; must divide the width.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Returns the projected attention output."""
        batch, tokens, width = x.shape
        qkv = _make_dense(self, 3 * width, "qkv")(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        output = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return _make_dense(self, width, "out")(output.reshape(x.shape))


class FeedForward(nn.Module):
    """Two dense layers with a GELU (Hendrycks and Gimpel, 2016) in between. The hidden width is 4 times the width.

    Attributes:
        gelu: see `ViTSettings`.
    """

    gelu: Literal["exact", "tanh"]
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the network to each token."""
        hidden = _make_dense(self, 4 * x.shape[-1], "expand")(x)
        return _make_dense(self, x.shape[-1], "contract")(nn.gelu(hidden, approximate=self.gelu == "tanh"))


def _make_dense(module: Embedding | SelfAttention | FeedForward, features: int, name: str) -> Dense:
    init = nn.initializers.xavier_uniform()
    return Dense(features, kernel_init=init, dtype=module.dtype, param_dtype=module.param_dtype, name=name)


def _count_stages(size: Size, stage: str) -> int:
    """Returns the number of stages up to and including `stage`, or 0 for "". Raises ValueError if it is unknown."""
    if stage and stage not in size.stage_names:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(size.stage_names)}")
    return size.stage_names.index(stage) + 1 if stage else 0
