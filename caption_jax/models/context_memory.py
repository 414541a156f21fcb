"""Texts beside the image as part of what the decoder attends to."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float

from caption_jax.models.text_encoder import TextFeatures


class ContextMemory(nn.Module):
    """Slots of memory for the texts that stand beside an image: dense, a learned row for each text, layer norm.

    The rows tell the decoder one text from the next, and all of them, with the norm's own bias, from the image.

    Attributes:
        slots: the most texts beside an image.
        width: of the memory.
        form: 'vector' (the text's vector, one slot a text) or 'tokens' (the encoder's states, one slot a token).
        dtype: of computation.
        param_dtype: of the parameters.
    """

    slots: int
    width: int
    form: Literal["vector", "tokens"] = "vector"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: TextFeatures, mask: Bool[Array, "batch texts length"]
    ) -> tuple[Float[Array, "batch slots width"], Bool[Array, "batch slots"]]:
        """Returns the slots of each image, text after text, and which of them count.

        Args:
            features: of batch x texts texts, those of an image one after the other.
            mask: True for real tokens; a text without any is none.

        Raises:
            ValueError: an unknown form, or more texts than slots.
        """
        if self.form not in ("vector", "tokens"):
            raise ValueError(f"config.model.context.form is {self.form!r}; it must be 'vector' or 'tokens'")
        batch, texts, _ = mask.shape
        if texts > self.slots:
            raise ValueError(f"{texts} texts beside an image; this model has config.model.context.slots={self.slots}")
        vector = self.form == "vector"
        found = features.vector[:, None] if vector else features.tokens
        x = nn.Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name="dense")(found)
        x = x.reshape(batch, texts, -1, self.width)
        shape = (self.slots, self.width)
        position = self.param("position", nn.initializers.normal(0.02), shape, self.param_dtype)
        x = x + position[:texts, None].astype(x.dtype)
        x = nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
        kept = mask.any(-1, keepdims=True) if vector else mask
        return x.reshape(batch, -1, self.width), kept.reshape(batch, -1)
