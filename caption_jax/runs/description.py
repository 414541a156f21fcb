"""A run apart from its weights: config, model sizes, preprocessing, vocabulary, and the model built from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from caption_jax.backbones.protocol import restored_settings
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.runtime.extension_sources import source_of
from caption_jax.specs import RunSpec, as_mapping
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Vocabulary

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What the model's shape depends on beside the config: sizes found in the data, settings found with the weights.

    `backbone` holds the settings of the image backbone's weights (`stored_settings`); `text_encoder` the sizes of its
    RoBERTa, None where the model has no text encoder; `shared_space` says whether that comes with a space for images
    and texts.
    """

    vocabulary_size: int
    max_length: int
    backbone: Mapping[str, Any]
    text_encoder: dict[str, Any] | None = None
    shared_space: bool = True

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelSettings:
        """Those that a run stored. Before version 0.2 every backbone was an EfficientNet, and its settings lay open."""
        backbone = {key: content[key] for key in ("padding", "norm_epsilon") if key in content}
        return cls(**{"backbone": backbone, **{key: content[key] for key in content.keys() - backbone.keys()}})


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """A run without its weights: its config, and what was found in its data. It rebuilds the model.

    `workdir.write_description` and `workdir.read_description` keep it in the workdir.

    Attributes:
        spec: every key of its config.
        model_settings: what the model's shape depends on beside the config.
        preprocessing: from an image to the encoder's input.
        vocabulary: from words to token ids and back.
    """

    spec: RunSpec
    model_settings: ModelSettings
    preprocessing: Preprocessing
    vocabulary: Vocabulary

    @property
    def backbone_settings(self) -> Any:
        """What the image backbone shares with the network that its weights were trained in (`Settings`)."""
        pixels = self.preprocessing
        encoder, stored = self.spec.model.encoder, self.model_settings.backbone
        return restored_settings(encoder, stored, pixels.mean, pixels.std, source="the run's model.json")

    def model(self, frozen_norms: frozenset[str] = frozenset()) -> ImageCaptioningModel:
        """Builds the model; see `build_model` for `frozen_norms`."""
        from caption_jax.models.build import build_model  # Flax: not needed by a start that traces nothing

        return build_model(
            self.spec.model,
            vocabulary_size=self.model_settings.vocabulary_size,
            max_length=self.model_settings.max_length,
            dtype=compute_dtype(self.spec.dtype),
            frozen_norms=frozen_norms,
            backbone_settings=self.backbone_settings,
            text_encoder=self.model_settings.text_encoder,
            shared_space=self.model_settings.shared_space,
        )

    @functools.cached_property
    def jitted_init(self) -> Callable:
        """The model's `init`, jitted once, so that its shapes and its values come from one trace."""
        # Runs once, over small arrays: compiling it quickly matters more than running it fast.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(functools.partial(self.model().init, train=False), compiler_options=options)

    def cache_key(self) -> dict[str, Any]:
        """All that decides what the model computes except its weights, for the key of a `CachedProgram`."""
        return {
            "model": as_mapping(self.spec.model),
            "backbone_source": source_of(type(self.spec.model.encoder)),
            "dtype": self.spec.dtype,
            "settings": dataclasses.asdict(self.model_settings),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "vocabulary": self.vocabulary.fingerprint(),
        }

    @property
    def has_text_encoder(self) -> bool:
        """Whether the model has a text encoder, for a space of images and texts, for context or for both."""
        return self.model_settings.text_encoder is not None

    @property
    def has_shared_space(self) -> bool:
        """Whether the model puts texts in one space with images."""
        return self.has_text_encoder and self.model_settings.shared_space

    def check_shared_space(self) -> None:
        """Raises ValueError, with what to train, where the model has no space that images and texts share."""
        if not self.has_shared_space:
            raise WorkdirError(
                "this run was trained without a space that its images and texts share: train one with "
                "--config.objective.contrastive_weight above 0, as configs/flickr8k_search.py does"
            )

    @property
    def text_reader(self) -> TextReader:
        """Gives texts and captions in the ids that the model's text encoder reads.

        Raises:
            ValueError: the model has no text encoder.
        """
        if not self.has_text_encoder:
            raise WorkdirError(
                "this run was trained without a text encoder: train one with --config.objective.contrastive_weight or "
                "--config.model.context.slots above 0"
            )
        rows = self.model_settings.text_encoder["vocab_size"]
        return TextReader(self.vocabulary, rows != self.vocabulary.size, self.model_settings.max_length)

    @property
    def text_ids(self) -> Callable[[jax.Array], jax.Array] | None:
        """From the decoder's token ids to the text encoder's, for `decode`; None without a text encoder."""
        return self.text_reader.ids_of if self.has_text_encoder else None


@dataclasses.dataclass(frozen=True)
class TextReader:
    """From words to the ids of a text encoder.

    An encoder that was trained here from nothing has a row for each token of the compact vocabulary, and reads compact
    ids. A RoBERTa that was trained elsewhere has one for each token of its tokenizer and reads full ids, so that it
    knows words which the training captions lack. (Where the vocabulary is the whole tokenizer both are the same.)

    Attributes:
        vocabulary: of the run.
        full: whether the encoder reads full ids.
        max_length: tokens of the longest text; longer ones are cut as captions are.
    """

    vocabulary: Vocabulary
    full: bool
    max_length: int

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of texts from <s> to </s>, then pads."""
        vocabulary = self.vocabulary
        encode = vocabulary.encode_full_batch if self.full else vocabulary.encode_batch
        return encode(list(texts), self.max_length)

    def ids_of(self, tokens: Int[jax.Array, "*shape"]) -> Int[jax.Array, "*shape"]:
        """Ids of captions that are compact ids already, on the device."""
        if not self.full:
            return tokens
        return jnp.asarray(self.vocabulary.to_full(range(self.vocabulary.size)))[tokens]


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that layers compute in; parameters, norms' statistics, softmax and loss stay float32."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f'config.dtype is {name!r}; it must be "auto", "bfloat16" or "float32"')
    return jnp.dtype(name)
