"""Run description: everything about a trained model except its weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from caption_jax.backbones.protocol import restored_settings
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.runtime.extension_sources import source_hash
from caption_jax.specs import RunSpec, as_mapping
from input_pipeline.images import Preprocessing
from input_pipeline.limits import Limits
from input_pipeline.spec_checks import show
from input_pipeline.tokenizer import Vocabulary

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel


log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Model settings that are not in the config, because they depend on the data or on pretrained weights.

    Attributes:
        vocabulary_size: number of tokens in the compact vocabulary.
        max_length: maximum caption length in tokens, including <s> and </s>.
        backbone: settings of the image backbone's weights (`stored_settings`).
        text_encoder: config of the text encoder; None if the model has no text encoder.
        joint_embedding: whether a model with a text encoder has a joint embedding of images and texts.
    """

    vocabulary_size: int
    max_length: int
    backbone: Mapping[str, Any]
    text_encoder: dict[str, Any] | None = None
    joint_embedding: bool = True

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelSettings:
        """Parses the settings of a stored run."""
        # Before version 0.2, the EfficientNet settings were top-level keys.
        backbone = {key: content[key] for key in ("padding", "norm_epsilon") if key in content}
        settings = {"backbone": backbone, **{key: content[key] for key in content.keys() - backbone.keys()}}
        if "shared_space" in settings:  # the key before version 0.2
            settings["joint_embedding"] = settings.pop("shared_space")
        return cls(**settings)


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """Everything needed to rebuild the model of a run, except the weights.

    `workdir.write_description` stores it in a workdir, and `workdir.read_description` loads it.

    Attributes:
        spec: the config of the run.
        model_settings: model settings that are not in the config.
        preprocessing: preprocessing of images, with the limits of `spec`.
        vocabulary: mapping between captions and token ids.
    """

    spec: RunSpec
    model_settings: ModelSettings
    preprocessing: Preprocessing
    vocabulary: Vocabulary

    def __post_init__(self):
        preprocessing = dataclasses.replace(self.preprocessing, limits=self.spec.limits)
        object.__setattr__(self, "preprocessing", preprocessing)

    def with_limits(self, limits: Limits) -> RunDescription:
        """Returns a copy with other limits on input files."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, limits=limits))

    @property
    def backbone_settings(self) -> Any:
        """Settings that the image backbone shares with its pretrained weights (`Settings`)."""
        encoder, stored = self.spec.model.encoder, self.model_settings.backbone
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return restored_settings(encoder, stored, mean, std, source="the run's model.json")

    def model(self, frozen_norms: frozenset[str] = frozenset()) -> ImageCaptioningModel:
        """Builds the model; see `build_model` for `frozen_norms`."""
        from caption_jax.models.build import build_model  # imports Flax, which cached programs do not need

        return build_model(
            self.spec.model,
            vocabulary_size=self.model_settings.vocabulary_size,
            max_length=self.model_settings.max_length,
            dtype=compute_dtype(self.spec.dtype),
            frozen_norms=frozen_norms,
            backbone_settings=self.backbone_settings,
            text_encoder=self.model_settings.text_encoder,
            joint_embedding=self.model_settings.joint_embedding,
        )

    @functools.cached_property
    def jitted_init(self) -> Callable:
        """The jitted `init` of the model, cached so that one trace yields both the shapes and the initial values."""
        # It runs once on small arrays, so compile time matters more than run time.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(functools.partial(self.model().init, train=False), compiler_options=options)

    def cache_key(self) -> dict[str, Any]:
        """Returns everything that determines the model's computation, apart from the weights, for `CachedProgram`."""
        return {
            "model": as_mapping(self.spec.model),
            "backbone_source": source_hash(type(self.spec.model.encoder)),
            "dtype": self.spec.dtype,
            "settings": dataclasses.asdict(self.model_settings),
            "preprocessing": self.preprocessing.settings(),
            "vocabulary": self.vocabulary.fingerprint(),
        }

    @property
    def has_text_encoder(self) -> bool:
        """Whether the model has a text encoder, for the joint embedding, context or both."""
        return self.model_settings.text_encoder is not None

    @property
    def has_joint_embedding(self) -> bool:
        """Whether the model has a joint embedding of images and texts."""
        return self.has_text_encoder and self.model_settings.joint_embedding

    def check_joint_embedding(self) -> None:
        """Raises WorkdirError if the model has no joint embedding of images and texts."""
        if not self.has_joint_embedding:
            raise WorkdirError(
                "this run was trained without a joint embedding of images and texts: train one with "
                "--config.objective.contrastive_weight above 0, as --config=folder_search does"
            )

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Tokenizer for inputs of the text encoder.

        Raises:
            WorkdirError: the model has no text encoder.
        """
        if not self.has_text_encoder:
            raise WorkdirError(
                "this run was trained without a text encoder: train one with --config.objective.contrastive_weight or "
                "--config.model.context.max_texts above 0"
            )
        uses_full_ids = self.model_settings.text_encoder["vocab_size"] != self.vocabulary.size
        return TextTokenizer(self.vocabulary, uses_full_ids, self.model_settings.max_length)

    @property
    def text_ids(self) -> Callable[[jax.Array], jax.Array] | None:
        """Function that maps decoder token ids to text encoder token ids; None if there is no text encoder."""
        return self.text_tokenizer.from_caption_ids if self.has_text_encoder else None


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Tokenizer of the text encoder.

    A text encoder trained from scratch embeds the compact vocabulary and takes compact ids. A pretrained RoBERTa embeds
    its full tokenizer vocabulary and takes full ids, so it also covers words that do not occur in the training
    captions. The ids are identical if the run does not use a compact vocabulary.

    Attributes:
        vocabulary: vocabulary of the run.
        uses_full_ids: whether the text encoder takes full ids.
        max_length: maximum number of tokens; longer texts are truncated like captions.
    """

    vocabulary: Vocabulary
    uses_full_ids: bool
    max_length: int

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Tokenizes texts into ids from <s> to </s>, padded to `max_length`."""
        vocabulary = self.vocabulary
        encode = vocabulary.encode_full_batch if self.uses_full_ids else vocabulary.encode_batch
        return encode(list(texts), self.max_length)

    def from_caption_ids(self, tokens: Int[jax.Array, "*shape"]) -> Int[jax.Array, "*shape"]:
        """Converts compact caption ids to ids of the text encoder, on the device."""
        if not self.uses_full_ids:
            return tokens
        return jnp.asarray(self.vocabulary.to_full(range(self.vocabulary.size)))[tokens]


def compute_dtype(name: str) -> jnp.dtype:
    """Returns the compute dtype of layers. Parameters, norm statistics, softmax and loss remain float32.

    Args:
        name: "float32", "bfloat16", or "auto": bfloat16 on accelerators that compute in it, otherwise float32. If
            "bfloat16" is set on other GPUs, a warning is logged once.

    Raises:
        ConfigError: `name` is unknown.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f'config.dtype is {show(name)}; it must be "auto", "bfloat16" or "float32"')
    if name == "float32" or (name == "auto" and jax.default_backend() == "cpu"):
        return jnp.dtype("float32")
    slow = next((device.device_kind for device in jax.local_devices() if not computes_in_bfloat16(device)), None)
    if slow is not None and name == "auto":
        return jnp.dtype("float32")
    if slow is not None:
        _warn_about_bfloat16(slow)
    return jnp.dtype("bfloat16")


def computes_in_bfloat16(device: jax.Device) -> bool:
    """Returns whether a device has instructions for bfloat16: all except NVIDIA GPUs of compute capability below 8.0.

    Those, such as V100 and T4, convert to float32 and back around each operation, which is slower than float32.
    """
    capability = str(getattr(device, "compute_capability", ""))  # such as "7.5"; other vendors have names
    return not re.fullmatch(r"[0-7](\.\d+)?", capability)


@functools.cache
def _warn_about_bfloat16(device_kind: str) -> None:
    log.warning(
        "config.dtype=bfloat16, but %s has no instructions for it and is faster in float32: remove the key, or set "
        "config.dtype=float32",
        device_kind,
    )
