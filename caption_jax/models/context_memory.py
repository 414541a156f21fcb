"""Memory of context texts, which the decoder attends to together with the image."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float

from caption_jax.models.layers import Dense
from caption_jax.models.text_encoder import TextFeatures
from caption_jax.ops.mixed_precision import add_parameter


class ContextMemory(nn.Module):
    """Computes the memory of context texts: dense layer, learned embedding of the text's index, layer norm.

    The embeddings distinguish the texts from each other and, with the bias of the layer norm, from the image.

    Attributes:
        max_texts: maximum number of context texts per image.
        width: feature size of the memory.
        form: 'vector' (the text's vector, one position per text) or 'tokens' (the text encoder's hidden states, one
            position per token).
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
    """

    max_texts: int
    width: int
    form: Literal["vector", "tokens"] = "vector"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: TextFeatures, mask: Bool[Array, "batch texts length"]
    ) -> tuple[Float[Array, "batch memory width"], Bool[Array, "batch memory"]]:
        """Returns the memory of each image, with its texts concatenated, and the mask of the memory.

        Args:
            features: features of `batch * texts` texts in image-major order.
            mask: True for tokens, False for padding. Texts without tokens are masked.

        Raises:
            ValueError: `form` is unknown, or there are more than `max_texts` texts.
        """
        if self.form not in ("vector", "tokens"):
            raise ValueError(f"config.model.context.form is {self.form!r}; it must be 'vector' or 'tokens'")
        batch, texts, _ = mask.shape
        if texts > self.max_texts:
            raise ValueError(f"{texts} context texts per image, but config.model.context.max_texts={self.max_texts}")
        is_vector = self.form == "vector"
        states = features.vector[:, None] if is_vector else features.tokens
        x = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name="dense")(states)
        x = x.reshape(batch, texts, -1, self.width)
        shape = (self.max_texts, self.width)
        position = self.param("position", nn.initializers.normal(0.02), shape, self.param_dtype)
        x = add_parameter(x, position[:texts, None])
        x = nn.LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype, name="norm")(x)
        memory_mask = mask.any(-1, keepdims=True) if is_vector else mask
        return x.reshape(batch, -1, self.width), memory_mask.reshape(batch, -1)
