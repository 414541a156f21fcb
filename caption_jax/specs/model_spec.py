"""`config.model`: sizes and pretrained weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.specs.extensions import extension
from input_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from caption_jax.backbones.protocol import Backbone


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """The caption decoder."""

    # "" (random), or a RoBERTa, a local folder or a hub name, whose layers it starts from: it has to be of that shape
    # (configs/coco_roberta_decoder.py), and data.tokenizer its own.
    weights: str = ""
    layers: int = 6
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.1
    dropout_bits: int = 8  # random bits per element: 8 (rates in multiples of 1/256) or 16 (exact within 2 ** -17)
    norm: str = "pre"  # "pre" or "post"
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"  # "gelu" (exact) or "gelu_tanh" (its approximation)
    positions: str = "learned"  # "learned" or "sinusoidal"

    def __post_init__(self):
        if self.dropout_bits not in (8, 16):
            raise ConfigError(f"config.model.decoder.dropout_bits is {self.dropout_bits}; it must be 8 or 16")
        if self.norm not in ("pre", "post"):
            raise ConfigError(f'config.model.decoder.norm is {self.norm!r}; it must be "pre" or "post"')
        if self.width % self.heads:
            raise ConfigError(f"config.model.decoder.width={self.width} must be a multiple of its heads={self.heads}")
        if self.activation not in ("gelu", "gelu_tanh"):
            raise ConfigError(
                f"config.model.decoder.activation is {self.activation!r}; it must be one of gelu, gelu_tanh"
            )
        if self.positions not in ("learned", "sinusoidal"):
            raise ConfigError(
                f'config.model.decoder.positions is {self.positions!r}; it must be "learned" or "sinusoidal"'
            )


@dataclasses.dataclass(frozen=True)
class TextEncoderSpec:
    """The text encoder; in the model only where objective.contrastive_weight or model.context.slots is above 0."""

    # "" (from scratch, sizes below, tokens of the compact vocabulary), or a RoBERTa: a local folder or a hub name. It
    # has its own sizes, and reads all tokens of data.tokenizer, which has to be its own.
    weights: str = ""
    layers: int = 4
    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1
    remat: bool = False  # recompute its layers in the backward pass instead of keeping their activations


@dataclasses.dataclass(frozen=True)
class JointEmbeddingSpec:
    """The joint embedding of images and texts, where objective.contrastive_weight is above 0."""

    width: int = 256
    temperature: float = 0.07  # similarities are divided by it at the start; it is learned
    min_temperature: float = 0.01

    def __post_init__(self):
        if not 0 < self.min_temperature <= self.temperature:
            raise ConfigError(
                f"model.shared_space.temperature is {self.temperature}: it must be at least "
                f"model.shared_space.min_temperature={self.min_temperature}, and both above 0"
            )


@dataclasses.dataclass(frozen=True)
class ContextSpec:
    """Texts that the decoder attends to in addition to the image, through the text encoder."""

    slots: int = 0  # most texts per image; 0 for no context
    form: str = "vector"  # what is attended to of a text: its "vector", or the encoder's states of all its "tokens"
    dropout: float = 0.2  # fraction of the training images that get no context in an epoch

    def __post_init__(self):
        if self.slots < 0:
            raise ConfigError(f"config.model.context.slots is {self.slots}; it has to be 0 (for no context) or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"config.model.context.dropout is {self.dropout}; it has to be in [0, 1)")
        if self.form not in ("vector", "tokens"):
            raise ConfigError(f"config.model.context.form is {self.form!r}; it must be 'vector' or 'tokens'")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The captioner."""

    # What it is computed by: the "fast" operations, or the plain "reference" of each (caption_jax/ops).
    ops: str = "fast"
    image_memory: str = "grid"  # what the decoder attends to: "grid", "vector" or "both"
    vector: str = "mean"  # how the image vector is pooled: "mean" or "flatten"
    memory_dropout: float = 0.1
    encoder: Backbone = extension(EfficientNetBackbone)  # EfficientNet's keys, or {"name": "package.module:Class", ..}
    decoder: DecoderSpec = DecoderSpec()
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    shared_space: JointEmbeddingSpec = JointEmbeddingSpec()
    context: ContextSpec = ContextSpec()

    def __post_init__(self):
        if self.ops not in ("fast", "reference"):
            raise ConfigError(f'config.model.ops is {self.ops!r}; it must be "fast" or "reference"')
        if self.image_memory not in ("grid", "vector", "both"):
            raise ConfigError(
                f"config.model.image_memory is {self.image_memory!r}; it must be 'grid', 'vector' or 'both'"
            )
        if self.vector not in ("mean", "flatten"):
            raise ConfigError(f"config.model.vector is {self.vector!r}; it must be 'mean' or 'flatten'")
        for key, rate in (("memory_dropout", self.memory_dropout), ("decoder.dropout", self.decoder.dropout)):
            if not 0 <= rate < 1:
                raise ConfigError(f"a dropout rate in config.model is {rate} ({key}); it has to be in [0, 1)")
