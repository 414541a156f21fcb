"""Encodes images into the memory of the decoder: a backbone's feature grid, one vector per image, or both."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from caption_jax.models.layers import Dense
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.mixed_precision import add_parameter


@struct.dataclass
class ImageFeatures:
    """Features of a batch of images.

    Attributes:
        memory: input of the decoder's cross-attention: the grid cells in row-major order, then the vector, then any
            context positions (`ImageCaptioningModel.add_context`).
        vector: one vector per image; None if unused.
        memory_mask: True for memory positions to attend to; all positions if None. Image positions are always True.
        context_memory_length: number of context positions.
    """

    memory: Float[Array, "batch memory width"]
    vector: Float[Array, "batch width"] | None
    memory_mask: Bool[Array, "batch memory"] | None = None
    context_memory_length: int = struct.field(default=0, pytree_node=False)

    @property
    def image_memory_length(self) -> int:
        """Number of image positions, which precede the context positions."""
        return self.memory.shape[1] - self.context_memory_length


class ImageEncoder(nn.Module):
    """A backbone and a projection of its features to the width of the model.

    Attributes:
        backbone: maps normalised images to features [batch, h, w, channels]; takes `train`, `start_after` and
            `stop_after`, as `EfficientNet` does.
        width: width of the model.
        image_memory: 'grid' (one memory position per cell, with a learned position embedding), 'vector' (one memory
            position) or 'both'.
        vector: pooling of the cells before the dense layer of the vector, 'mean' or 'flatten' (concatenation).
        always_vector: whether to compute the vector for the joint embedding even if it is not part of the memory.
        cell_dropout: fraction of the cells of the grid that are hidden in training, sampled per image.
        memory_dropout: dropout rate of the memory.
        memory_encoder: maps the memory to one of the same shape; takes `train`, as `MemoryEncoder` does. None for none.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    backbone: nn.Module
    width: int = 512
    image_memory: Literal["grid", "vector", "both"] = "grid"
    vector: Literal["mean", "flatten"] = "mean"
    always_vector: bool = False
    cell_dropout: float = 0.0
    memory_dropout: float = 0.0
    memory_encoder: nn.Module | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    def setup(self) -> None:
        """Creates the submodules. Raises ValueError for an unknown `image_memory` or `vector`."""
        if self.image_memory not in ("grid", "vector", "both"):
            raise ValueError(
                f"config.model.image_memory is {self.image_memory!r}; it must be 'grid', 'vector' or 'both'"
            )
        if self.vector not in ("mean", "flatten"):
            raise ValueError(f"config.model.vector is {self.vector!r}; it must be 'mean' or 'flatten'")
        settings = {"dtype": self.dtype, "param_dtype": self.param_dtype, "ops": self.ops}
        if self.image_memory != "vector":
            self.grid = GridMemory(self.width, self.cell_dropout, **settings)
        if self.image_memory != "grid" or self.always_vector:
            self.pooled = VectorMemory(self.width, self.vector, **settings)
        self.dropout = nn.Dropout(self.memory_dropout)

    def __call__(
        self, images: Float[Array, "batch *grid inputs"], *, train: bool, start_after: str = ""
    ) -> ImageFeatures:
        """Returns the features of normalised images. Training with dropout requires the RNG stream "dropout".

        Args:
            images: normalised pixels, or the output of the backbone stage `start_after`.
            train: enables dropout, stochastic depth and batch statistics.
            start_after: backbone stage that computed `images` (see `encode_to_stage`); "" if they are pixels.
        """
        return self.project(self.backbone(images, train=train, start_after=start_after), train=train)

    def encode_to_stage(self, stage: str, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch ..."]:
        """Returns the output of the backbone stage `stage` for normalised images, with stored norm statistics."""
        return self.backbone(images, train=False, stop_after=stage)

    def project(self, features: Float[Array, "batch h w channels"], *, train: bool) -> ImageFeatures:
        """Projects the features of the backbone to the memory and the vector."""
        parts, vector = [], None
        if self.image_memory != "grid" or self.always_vector:
            vector = self.pooled(features)
        if self.image_memory != "vector":
            parts.append(self.grid(features, train=train))
        if self.image_memory != "grid":
            parts.append(vector[:, None, :])
        memory = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        memory = self.dropout(memory, deterministic=not train)
        if self.memory_encoder is not None:
            memory = self.memory_encoder(memory, train=train)
        return ImageFeatures(memory, vector)


class GridMemory(nn.Module):
    """One memory position per cell: a dense layer, a learned position embedding, then layer norm.

    In training, `cell_dropout` is the fraction of cells that are left out, which also saves their computation
    (PatchDropout, Liu et al. 2022, https://arxiv.org/abs/2208.07220).
    """

    width: int
    cell_dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch h w channels"], *, train: bool
    ) -> Float[Array, "batch positions width"]:
        """Returns the memory positions of the cells, in row-major order; in training, of the cells that are kept."""
        batch, height, width, channels = features.shape
        cells = features.reshape(batch, height * width, channels)
        kept = None
        if train and self.cell_dropout:
            kept = _draw_cells(self.make_rng("dropout"), batch, height * width, self.cell_dropout)
            cells = jnp.take_along_axis(cells, kept[..., None], axis=1)
        x = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, ops=self.ops, name="dense")(cells)
        shape = (height * width, self.width)
        position = self.param("position", nn.initializers.normal(0.02), shape, self.param_dtype)
        norm = nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")
        return norm(add_parameter(x, position if kept is None else position[kept]))


def _draw_cells(key: Key[Array, ""], batch: int, cells: int, rate: float) -> Int[Array, "batch kept"]:
    """Returns the indices of the cells to keep, at least one, in ascending order: the same number for each image."""
    kept = max(1, round(cells * (1 - rate)))
    return jnp.sort(jax.lax.top_k(jax.random.uniform(key, (batch, cells)), kept)[1], axis=-1)


class VectorMemory(nn.Module):
    """One vector per image: the mean of the cells, or all cells flattened, then a dense layer and layer norm."""

    width: int
    pooling: Literal["mean", "flatten"] = "mean"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w channels"]) -> Float[Array, "batch width"]:
        """Returns the vector of each image."""
        if self.pooling == "mean":
            pooled = jnp.mean(features, axis=(1, 2), dtype=jnp.float32)
        else:
            pooled = features.reshape(features.shape[0], -1)
        x = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, ops=self.ops, name="dense")(pooled)
        return nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
