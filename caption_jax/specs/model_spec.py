"""`config.model`: model dimensions and pretrained weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.specs.extensions import extension_field
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, greater_than, interval, one_of

if TYPE_CHECKING:
    from caption_jax.backbones.protocol import Backbone


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """The caption decoder."""

    # "" for random initialisation, or a RoBERTa checkpoint (local folder, file or hub name) with the initial weights.
    # The decoder must have the dimensions of the checkpoint (configs/coco_roberta_decoder.py), and data.tokenizer must
    # be its tokenizer.
    weights: str = ""
    layers: int = 6
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.1
    token_dropout: float = 0.0  # fraction of the input tokens that are hidden in training
    dropout_bits: int = 8  # random bits per element: 8 (rate rounded to a multiple of 1/256) or 16 (of 1/65536)
    norm: str = "pre"  # "pre" or "post"
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"  # "gelu" (exact) or "gelu_tanh" (tanh approximation)
    positions: str = "learned"  # "learned" or "sinusoidal"

    def __post_init__(self):
        check_fields(
            self,
            "config.model.decoder",
            layers=at_least(1, largest=1024),
            width=at_least(1),
            heads=at_least(1),
            feed_forward=at_least(1),
            dropout=interval("[0, 1)", "0 for none"),
            token_dropout=interval("[0, 1)", "0 for none"),
            dropout_bits=one_of(8, 16),
            norm=one_of("pre", "post"),
            norm_epsilon=greater_than(0),
            activation=one_of("gelu", "gelu_tanh"),
            positions=one_of("learned", "sinusoidal"),
        )
        if self.width % self.heads:
            raise ConfigError(f"config.model.decoder.width={self.width} must be a multiple of heads={self.heads}")


@dataclasses.dataclass(frozen=True)
class TextEncoderSpec:
    """The text encoder, which is built only if objective.contrastive_weight or model.context.max_texts is positive."""

    # "" for random initialisation with the dimensions below and the compact vocabulary, or a RoBERTa checkpoint (local
    # folder, file or hub name). The dimensions of the checkpoint override those below. It uses the full vocabulary of
    # data.tokenizer, which must be its tokenizer.
    weights: str = ""
    layers: int = 4
    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1
    remat: bool = False  # recompute the activations of layers in the backward pass

    def __post_init__(self):
        check_fields(
            self,
            "config.model.text_encoder",
            layers=at_least(1, largest=1024),
            width=at_least(1),
            heads=at_least(1),
            feed_forward=at_least(1),
            dropout=interval("[0, 1)", "0 for none"),
        )
        if not self.weights and self.width % self.heads:
            raise ConfigError(f"config.model.text_encoder.width={self.width} must be a multiple of heads={self.heads}")


@dataclasses.dataclass(frozen=True)
class JointEmbeddingSpec:
    """The joint embedding of images and texts, which is built only if objective.contrastive_weight is positive."""

    width: int = 256
    temperature: float = 0.07  # initial value of the learned temperature
    min_temperature: float = 0.01

    def __post_init__(self):
        check_fields(
            self,
            "config.model.joint_embedding",
            width=at_least(1),
            temperature=greater_than(0),
            min_temperature=greater_than(0),
        )
        if self.min_temperature > self.temperature:
            raise ConfigError(
                f"config.model.joint_embedding.temperature is {self.temperature}; it must be at least "
                f"config.model.joint_embedding.min_temperature={self.min_temperature}"
            )


@dataclasses.dataclass(frozen=True)
class ContextSpec:
    """Texts that the decoder attends to in addition to the image, encoded by the text encoder."""

    max_texts: int = 0  # maximum number of texts per image; 0 for no context
    form: str = "vector"  # memory of a text: a pooled "vector", or the encoder states of its "tokens"
    dropout: float = 0.2  # fraction of training images without context in each epoch

    def __post_init__(self):
        check_fields(
            self,
            "config.model.context",
            max_texts=at_least(0, "for no context"),
            form=one_of("vector", "tokens"),
            dropout=interval("[0, 1)", "0 for none"),
        )


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The captioning model."""

    ops: str = "fast"  # implementation of the operations in caption_jax/ops: "fast" or "reference"
    image_memory: str = "grid"  # image features that the decoder attends to: "grid", "vector" or "both"
    vector: str = "mean"  # computation of the image vector from the grid: "mean" or "flatten"
    cell_dropout: float = 0.0  # fraction of the cells of each image that are hidden from the decoder, in training
    memory_dropout: float = 0.1
    # Transformer layers that relate the cells of an image to each other, with the dimensions and the dropout rate of
    # the decoder's layers.
    memory_layers: int = 0
    # Keys of EfficientNet, or {"name": "package.module:Class", ..} (docs/extending.md).
    encoder: Backbone = extension_field(EfficientNetBackbone)
    decoder: DecoderSpec = DecoderSpec()
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    joint_embedding: JointEmbeddingSpec = JointEmbeddingSpec()
    context: ContextSpec = ContextSpec()

    def __post_init__(self):
        check_fields(
            self,
            "config.model",
            ops=one_of("fast", "reference"),
            image_memory=one_of("grid", "vector", "both"),
            vector=one_of("mean", "flatten"),
            cell_dropout=interval("[0, 1)", "0 for none"),
            memory_dropout=interval("[0, 1)", "0 for none"),
            memory_layers=at_least(0, "for none", largest=1024),
        )
