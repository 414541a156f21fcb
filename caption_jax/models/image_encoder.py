"""From images to what the decoder attends to: a backbone's grid of features, one vector an image, or both."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from caption_jax.models.layers import Dense
from caption_jax.ops.forms import FAST, Ops


@struct.dataclass
class ImageFeatures:
    """What the encoder says of a batch of images.

    Attributes:
        memory: what the decoder attends to, [batch, slots, width]; the grid's cells row by row, then the vector.
        vector: one vector an image, [batch, width]; None where nothing uses one.
        memory_mask: True for slots that count, [batch, slots]; None for all. Those of the image always count, those of
            context (`ImageCaptioningModel.add_context`) may be empty.
        context_slots: how many slots at the end of the memory are context's.
    """

    memory: Float[Array, "batch slots width"]
    vector: Float[Array, "batch width"] | None
    memory_mask: Bool[Array, "batch slots"] | None = None
    context_slots: int = struct.field(default=0, pytree_node=False)

    @property
    def image_slots(self) -> int:
        """Slots of the memory that are the image's; those of context come behind them."""
        return self.memory.shape[1] - self.context_slots


class ImageEncoder(nn.Module):
    """A backbone, and the projection of its features to the model's width.

    Attributes:
        backbone: from normalised images to features [batch, h, w, channels]; called with `train`, `start_after` and
            `stop_after` as `EfficientNet` is.
        width: the model's width.
        image_memory: 'grid' (a slot for each cell, with a learned position), 'vector' (one slot) or 'both'.
        vector: how the vector is made before its dense layer: the 'mean' over cells, or all cells 'flatten'ed.
        always_vector: make the vector also where the memory is the grid alone, for a use beside the decoder.
        memory_dropout: dropout on the memory.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
        ops: form of the operations.
    """

    backbone: nn.Module
    width: int = 512
    image_memory: Literal["grid", "vector", "both"] = "grid"
    vector: Literal["mean", "flatten"] = "mean"
    always_vector: bool = False
    memory_dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    def setup(self) -> None:
        """Makes the submodules. Raises ValueError for an unknown choice."""
        if self.image_memory not in ("grid", "vector", "both"):
            raise ValueError(f"model.image_memory is {self.image_memory!r}; it must be 'grid', 'vector' or 'both'")
        if self.vector not in ("mean", "flatten"):
            raise ValueError(f"model.vector is {self.vector!r}; it must be 'mean' or 'flatten'")
        settings = {"dtype": self.dtype, "param_dtype": self.param_dtype, "ops": self.ops}
        if self.image_memory != "vector":
            self.grid = GridMemory(self.width, **settings)
        if self.image_memory != "grid" or self.always_vector:
            self.pooled = VectorMemory(self.width, self.vector, **settings)
        self.dropout = nn.Dropout(self.memory_dropout)

    def __call__(
        self, images: Float[Array, "batch height width inputs"], *, train: bool, start_after: str = ""
    ) -> ImageFeatures:
        """Returns the features of normalised images. Needs the rng 'dropout' in training where dropout is set.

        Args:
            images: normalised pixels, or what `up_to` gave for the backbone's stage `start_after`.
            train: dropout, stochastic depth and batch statistics.
            start_after: stage whose output `images` is; "" for pixels.
        """
        return self.project(self.backbone(images, train=train, start_after=start_after), train=train)

    def up_to(self, stage: str, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch ..."]:
        """Returns what the backbone's `stage` gives for normalised images, norms on their stored statistics."""
        return self.backbone(images, train=False, stop_after=stage)

    def project(self, features: Float[Array, "batch h w channels"], *, train: bool) -> ImageFeatures:
        """Returns the memory and vector of features that the backbone gave."""
        slots, vector = [], None
        if self.image_memory != "grid" or self.always_vector:
            vector = self.pooled(features)
        if self.image_memory != "vector":
            slots.append(self.grid(features))
        if self.image_memory != "grid":
            slots.append(vector[:, None, :])
        memory = slots[0] if len(slots) == 1 else jnp.concatenate(slots, axis=1)
        return ImageFeatures(self.dropout(memory, deterministic=not train), vector)


class GridMemory(nn.Module):
    """A slot for each cell: dense, plus a learned position, then layer norm."""

    width: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w channels"]) -> Float[Array, "batch cells width"]:
        """Returns the cells row by row."""
        batch, height, width, channels = features.shape
        cells = features.reshape(batch, height * width, channels)
        x = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, ops=self.ops, name="dense")(cells)
        shape = (height * width, self.width)
        position = self.param("position", nn.initializers.normal(0.02), shape, self.param_dtype)
        return nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x + position.astype(x.dtype))


class VectorMemory(nn.Module):
    """One vector an image: the mean cell, or all cells flattened, through a dense layer and layer norm."""

    width: int
    pooling: Literal["mean", "flatten"] = "mean"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w channels"]) -> Float[Array, "batch width"]:
        """Returns the images' vectors."""
        if self.pooling == "mean":
            pooled = jnp.mean(features, axis=(1, 2), dtype=jnp.float32)
        else:
            pooled = features.reshape(features.shape[0], -1)
        x = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, ops=self.ops, name="dense")(pooled)
        return nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
