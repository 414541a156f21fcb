"""Builds the model that a config describes."""

from __future__ import annotations

import jax.numpy as jnp
from flax.typing import Dtype
from ml_collections import ConfigDict

from caption_jax.models.captioning import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder


def build_model(
    model_config: ConfigDict,
    vocabulary_size: int,
    max_length: int,
    dtype: Dtype = jnp.float32,
    *,
    frozen_norms: frozenset[str] = frozenset(),
    padding: str = "same",
    norm_epsilon: float = 1e-3,
) -> ImageCaptioningModel:
    """Builds the captioner of `config.model`; parameters are float32, whatever `dtype` it computes in.

    Args:
        model_config: the `model` part of a config.
        vocabulary_size: tokens that the decoder predicts.
        max_length: tokens of the longest caption, <s> and </s> included.
        dtype: of computation; norm statistics, softmax and logits are float32.
        frozen_norms: paths of batch norms that run on their stored statistics in training too.
        padding: of the image encoder's convolutions, as its weights want it: "same" or "symmetric".
        norm_epsilon: of its batch norms, as its weights want it.
    """
    encoder, decoder = model_config.encoder, model_config.decoder
    return ImageCaptioningModel(
        image_encoder=ImageEncoder(
            variant=encoder.variant,
            width=decoder.width,
            image_memory=model_config.image_memory,
            vector=model_config.vector,
            memory_dropout=model_config.memory_dropout,
            norm_group_size=encoder.norm_group_size,
            norm_momentum=encoder.norm_momentum,
            drop_path=encoder.drop_path,
            padding=padding,
            norm_epsilon=norm_epsilon,
            frozen_norms=frozen_norms,
            dtype=dtype,
        ),
        decoder=Decoder(
            vocabulary_size=vocabulary_size,
            layers=decoder.layers,
            width=decoder.width,
            heads=decoder.heads,
            feed_forward=decoder.feed_forward,
            dropout=decoder.dropout,
            norm=decoder.norm,
            positions=decoder.positions,
            max_length=max_length,
            dtype=dtype,
        ),
    )
