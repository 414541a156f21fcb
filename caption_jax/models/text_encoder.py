"""RoBERTa as a text encoder. Importing this module imports transformers, which takes seconds."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int
from transformers import RobertaConfig
from transformers.models.roberta.modeling_flax_roberta import FlaxRobertaModule


class TextFeatures(flax.struct.PyTreeNode):
    """Features of a batch of texts.

    Attributes:
        tokens: RoBERTa's last hidden states; those at pads mean nothing.
        vector: mean of `tokens` over the mask, through a dense layer.
    """

    tokens: Float[Array, "texts length hidden"]
    vector: Float[Array, "texts width"]


class TextEncoder(nn.Module):
    """RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692; transformers' Flax module) and a pooled vector.

    Parameters lie under `roberta/` (named as transformers names them) and `dense/`; published weights are read into the
    first by `caption_jax.pretrained.roberta_weights`.

    Attributes:
        roberta_config: sizes, dropout rates and pad id.
        width: of the vector.
        remat: recompute each layer's activations in the backward pass instead of keeping them.
        dtype: of computation.
    """

    roberta_config: RobertaConfig
    width: int
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        """Creates the submodules."""
        if self.roberta_config.is_decoder or self.roberta_config.add_cross_attention:
            raise ValueError(
                "the text encoder's RobertaConfig must have is_decoder=False and add_cross_attention=False"
            )
        self.roberta = FlaxRobertaModule(
            self.roberta_config, dtype=self.dtype, add_pooling_layer=False, gradient_checkpointing=self.remat
        )
        self.dense = nn.Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype)

    def __call__(
        self, input_ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> TextFeatures:
        """Encodes texts given in RoBERTa's own (full) token ids.

        Args:
            input_ids: token ids with <s> and </s>.
            mask: True for real tokens. What stands at the others changes nothing.
            train: dropout as the RobertaConfig sets it; needs the random stream "dropout".

        Raises:
            ValueError: texts longer than RoBERTa's positions.
        """
        length, config = input_ids.shape[1], self.roberta_config
        # RoBERTa's positions start after the pad's, whose own row serves pads.
        longest = config.max_position_embeddings - config.pad_token_id - 1
        if length > longest:
            raise ValueError(f"texts of {length} tokens, but this RoBERTa has positions for {longest}")
        mask = mask.astype(jnp.int32)
        positions = jnp.cumsum(mask, axis=1) * mask + config.pad_token_id
        hidden = self.roberta(input_ids, mask, None, positions, None, deterministic=not train)[0]
        weights = mask[..., None].astype(jnp.float32)
        mean = (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)  # in float32
        return TextFeatures(hidden, self.dense(mean.astype(self.dtype)))
