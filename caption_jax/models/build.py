"""Builds the model that a config describes."""

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
from caption_jax.models.joint_embedding import SharedSpace
from caption_jax.models.roberta import RobertaSizes
from caption_jax.models.text_encoder import TextEncoder
from caption_jax.ops.forms import FORMS

if TYPE_CHECKING:
    from caption_jax.specs import ModelSpec, TextEncoderSpec

_BACKBONE = "image_encoder/backbone/"


def build_model(
    spec: ModelSpec,
    vocabulary_size: int,
    max_length: int,
    dtype: Dtype = jnp.float32,
    *,
    frozen_norms: frozenset[str] = frozenset(),
    backbone_settings: Any = None,
    text_encoder: Mapping[str, Any] | None = None,
    shared_space: bool = True,
) -> ImageCaptioningModel:
    """Builds the captioner of `config.model`; parameters are float32, whatever `dtype` it computes in.

    Args:
        spec: `model` of a run's spec.
        vocabulary_size: tokens that the decoder predicts.
        max_length: tokens of the longest caption, <s> and </s> included.
        dtype: of computation; norm statistics, softmax and logits are float32.
        frozen_norms: paths ("image_encoder/backbone/stem/norm") of norms whose scale and bias are frozen. The backbone
            decides what follows: its batch norms run on their stored statistics in training too.
        backbone_settings: what the image backbone must share with the network that its weights were trained in; None
            for the settings of random weights.
        text_encoder: fields of `RobertaSizes` (`roberta_sizes`): then the model has a text encoder, and slots for
            context where the config asks for some. None for neither.
        shared_space: whether a text encoder comes with a space that images and texts share.
    """
    encoder, decoder, ops = spec.encoder, spec.decoder, FORMS[spec.ops]
    return ImageCaptioningModel(
        image_encoder=ImageEncoder(
            backbone=encoder.build(
                encoder.settings_class() if backbone_settings is None else backbone_settings,
                frozen_norms=frozenset(p.removeprefix(_BACKBONE) for p in frozen_norms if p.startswith(_BACKBONE)),
                dtype=dtype,
                ops=ops,
            ),
            width=decoder.width,
            image_memory=spec.image_memory,
            vector=spec.vector,
            always_vector=text_encoder is not None and shared_space,
            memory_dropout=spec.memory_dropout,
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
            dropout_bits=decoder.dropout_bits,
            norm=decoder.norm,
            norm_epsilon=decoder.norm_epsilon,
            activation=decoder.activation,
            positions=decoder.positions,
            max_length=max_length,
            dtype=dtype,
            ops=ops,
        ),
        **({} if text_encoder is None else _text_modules(spec, text_encoder, shared_space, dtype)),
    )


def roberta_sizes(spec: TextEncoderSpec, vocabulary_size: int, max_length: int, pad_id: int) -> dict[str, Any]:
    """Sizes of a text encoder that is trained from nothing, for `build_model`.

    Args:
        spec: `model.text_encoder` of a run's spec.
        vocabulary_size: ids that it reads.
        max_length: tokens of the longest text, <s> and </s> included.
        pad_id: the pad's among them.
    """
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.feed_forward,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.dropout,
        "max_position_embeddings": max_length + pad_id + 1,  # RoBERTa's positions start after the pad's
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": pad_id,
    }


def _text_modules(spec: ModelSpec, sizes: Mapping[str, Any], shared_space: bool, dtype: Dtype) -> dict[str, nn.Module]:
    space, context, width = spec.shared_space, spec.context, spec.decoder.width
    encoder = TextEncoder(RobertaSizes(**sizes), width, remat=spec.text_encoder.remat, dtype=dtype)
    found: dict[str, nn.Module] = {"text_encoder": encoder}
    if shared_space:
        found["shared_space"] = SharedSpace(space.width, space.temperature, space.min_temperature)
    if context.slots:
        found["context"] = ContextMemory(context.slots, width, context.form, dtype=dtype)
    return found
