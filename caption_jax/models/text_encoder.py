"""Text encoder: RoBERTa with mean pooling and a projection."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.layers import Dense
from caption_jax.models.roberta import Roberta, RobertaSettings


class TextFeatures(flax.struct.PyTreeNode):
    """Features of a batch of texts.

    Attributes:
        tokens: last hidden states of RoBERTa; undefined for padding.
        vector: projection of the mean of `tokens`, excluding padding.
    """

    tokens: Float[Array, "texts length hidden"]
    vector: Float[Array, "texts width"]


class TextEncoder(nn.Module):
    """RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692) with mean pooling and a projection.

    Parameters are stored under `roberta/` (see `Roberta`) and `dense/`. `caption_jax.pretrained.roberta_weights` loads
    published weights into `roberta/`.

    Attributes:
        settings: hyperparameters of RoBERTa, including its dropout rates and pad id.
        width: dimension of the vector.
        remat: whether to recompute each layer's activations in the backward pass instead of storing them.
        dtype: computation dtype.
        param_dtype: dtype of the parameters.
    """

    settings: RobertaSettings
    width: int
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        self.roberta = Roberta(self.settings, self.remat, self.dtype, self.param_dtype)
        self.dense = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype)

    def __call__(
        self, input_ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> TextFeatures:
        """Encodes texts, given as token ids of RoBERTa's full vocabulary.

        Args:
            input_ids: token ids with <s> and </s>.
            mask: True for tokens, False for padding.
            train: enables dropout at the rates in `settings`; requires the RNG stream "dropout".

        Raises:
            ValueError: the texts are longer than `settings.max_length`.
        """
        hidden = self.roberta(input_ids, mask, train=train)
        weights = mask[..., None].astype(jnp.float32)
        mean = (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)  # in float32
        return TextFeatures(hidden, self.dense(mean.astype(self.dtype)))
