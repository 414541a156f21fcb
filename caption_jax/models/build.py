"""Builds the captioning model from `config.model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.context_memory import ContextMemory
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from caption_jax.models.joint_embedding import JointEmbedding
from caption_jax.models.memory_layers import MemoryEncoder
from caption_jax.models.roberta import RobertaSettings
from caption_jax.models.text_encoder import TextEncoder
from caption_jax.ops.implementations import IMPLEMENTATIONS

if TYPE_CHECKING:
    from caption_jax.specs import ModelSpec, TextEncoderSpec

_BACKBONE_PREFIX = "image_encoder/backbone/"


def build_model(
    spec: ModelSpec,
    vocabulary_size: int,
    max_length: int,
    dtype: Dtype = jnp.float32,
    *,
    frozen_norms: frozenset[str] = frozenset(),
    backbone_settings: Any = None,
    text_encoder: Mapping[str, Any] | None = None,
    joint_embedding: bool = True,
) -> ImageCaptioningModel:
    """Builds the captioning model. Its parameters are always float32.

    Args:
        spec: the `model` section of a run's spec.
        vocabulary_size: number of tokens that the decoder predicts.
        max_length: maximum caption length in tokens, including <s> and </s>.
        dtype: computation dtype; norm statistics, softmax and logits are always float32.
        frozen_norms: paths ("image_encoder/backbone/stem/norm") of norms whose scale and bias are frozen. The effect
            depends on the backbone. For example, frozen batch norms also use their stored statistics in training.
        backbone_settings: settings that the weights of the image backbone were trained with. If None, the default
            settings for random weights.
        text_encoder: fields of `RobertaSettings` (see `roberta_settings`). If set, the model has a text encoder, and a
            context memory if the config enables one. If None, it has neither.
        joint_embedding: whether a model with a text encoder also has a joint embedding of images and texts.
    """
    encoder, decoder, ops = spec.encoder, spec.decoder, IMPLEMENTATIONS[spec.ops]
    backbone_norms = [path for path in frozen_norms if path.startswith(_BACKBONE_PREFIX)]
    return ImageCaptioningModel(
        image_encoder=ImageEncoder(
            backbone=encoder.build(
                encoder.settings_class() if backbone_settings is None else backbone_settings,
                frozen_norms=frozenset(path.removeprefix(_BACKBONE_PREFIX) for path in backbone_norms),
                dtype=dtype,
                ops=ops,
            ),
            width=decoder.width,
            image_memory=spec.image_memory,
            vector=spec.vector,
            always_vector=text_encoder is not None and joint_embedding,
            cell_dropout=spec.cell_dropout,
            memory_dropout=spec.memory_dropout,
            memory_encoder=_build_memory_encoder(spec, dtype),
            dtype=dtype,
            ops=ops,
        ),
        decoder=Decoder(
            vocabulary_size=vocabulary_size,
            layers=decoder.layers,
            width=decoder.width,
            heads=decoder.heads,
            feed_forward=decoder.feed_forward,
            dropout=decoder.dropout,
            token_dropout=decoder.token_dropout,
            dropout_bits=decoder.dropout_bits,
            norm=decoder.norm,
            norm_epsilon=decoder.norm_epsilon,
            activation=decoder.activation,
            positions=decoder.positions,
            max_length=max_length,
            dtype=dtype,
            ops=ops,
        ),
        **({} if text_encoder is None else _build_text_modules(spec, text_encoder, joint_embedding, dtype)),
    )


def roberta_settings(spec: TextEncoderSpec, vocabulary_size: int, max_length: int, pad_id: int) -> dict[str, Any]:
    """Returns the fields of `RobertaSettings` for a text encoder that is trained from scratch.

    Args:
        spec: the `model.text_encoder` section of a run's spec.
        vocabulary_size: number of token ids.
        max_length: maximum text length in tokens, including <s> and </s>.
        pad_id: id of the padding token.
    """
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.feed_forward,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.dropout,
        "max_position_embeddings": max_length + pad_id + 1,  # RoBERTa's positions start at pad_id + 1
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": pad_id,
    }


def _build_memory_encoder(spec: ModelSpec, dtype: Dtype) -> MemoryEncoder | None:
    """Builds the layers between the image encoder and the decoder, with the dimensions of the decoder's layers."""
    if not spec.memory_layers:
        return None
    decoder = spec.decoder
    return MemoryEncoder(
        spec.memory_layers,
        decoder.width,
        decoder.heads,
        decoder.feed_forward,
        decoder.dropout,
        decoder.dropout_bits,
        decoder.activation,
        dtype=dtype,
        ops=IMPLEMENTATIONS[spec.ops],
    )


def _build_text_modules(
    spec: ModelSpec, settings: Mapping[str, Any], joint_embedding: bool, dtype: Dtype
) -> dict[str, nn.Module]:
    joint, context, width = spec.joint_embedding, spec.context, spec.decoder.width
    encoder = TextEncoder(RobertaSettings(**settings), width, remat=spec.text_encoder.remat, dtype=dtype)
    submodules: dict[str, nn.Module] = {"text_encoder": encoder}
    if joint_embedding:
        submodules["joint_embedding"] = JointEmbedding(joint.width, joint.temperature, joint.min_temperature)
    if context.max_texts:
        submodules["context"] = ContextMemory(context.max_texts, width, context.form, dtype=dtype)
    return submodules
