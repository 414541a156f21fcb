"""The captioning model: an image encoder, a decoder and an optional text encoder."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import Cache
from caption_jax.models.context_memory import ContextMemory
from caption_jax.models.decoder import Decoder, DecoderOutput
from caption_jax.models.image_encoder import ImageEncoder, ImageFeatures
from caption_jax.models.joint_embedding import JointEmbedding
from caption_jax.models.text_encoder import TextEncoder, TextFeatures
from caption_jax.ops.implementations import Ops
from caption_jax.ops.segments import Segments


class ImageCaptioningModel(nn.Module):
    """Encoder-decoder captioning model, `images -> memory -> logits`.

    The decoder depends only on the image, the texts passed to `add_context` and the tokens before the predicted one.
    Embeddings of the captions to be predicted (`embed_texts`) are never an input of the decoder.

    Parameters are stored under `image_encoder/`, `decoder/`, `text_encoder/`, `joint_embedding/` and `context/`.

    Attributes:
        image_encoder: maps pixels to the memory.
        decoder: maps memory and tokens to logits.
        text_encoder: maps texts to vectors; None if unused.
        joint_embedding: maps images and texts to one space; requires a text encoder and an image encoder that computes
            a vector. None if unused.
        context: maps the context texts of an image to memory positions; requires a text encoder. None if unused.
    """

    image_encoder: ImageEncoder
    decoder: Decoder
    text_encoder: TextEncoder | None = None
    joint_embedding: JointEmbedding | None = None
    context: ContextMemory | None = None

    @property
    def ops(self) -> Ops:
        """Implementation of the operations, also used by the loss, augmentation and beam search."""
        return self.decoder.ops

    def __call__(
        self,
        images: Float[Array, "batch *grid inputs"],
        tokens: Int[Array, "batch captions length"],
        *,
        train: bool = False,
        start_after: str = "",
    ) -> Float[Array, "batch captions length vocabulary"]:
        """Returns teacher-forced float32 logits of each next token, with one encoder pass for all captions of an image.

        This method is for initialisation and standalone use. Training uses `objectives.forward_pass.ForwardPass`, which
        runs the same computation in separate steps, and decodes only if a loss term needs it.

        Args:
            images: normalised pixels, or the output of the backbone stage `start_after`.
            tokens: captions starting with <s>, without their last token.
            train: enables dropout, stochastic depth and batch statistics; requires the RNG stream "dropout".
            start_after: see `encode_images`.
        """
        features = self.encode_images(images, train=train, start_after=start_after)
        if self.is_initializing():
            self._init_text_parameters(features)
        return self.decode(tokens, features, train=train).logits

    def encode_images(
        self, images: Float[Array, "batch *grid inputs"], *, train: bool = False, start_after: str = ""
    ) -> ImageFeatures:
        """Returns the memory for the decoder, and the image vector.

        Args:
            images: normalised pixels, or the output of the backbone stage `start_after`.
            train: enables dropout, stochastic depth and batch statistics.
            start_after: backbone stage that computed `images` (see `encode_to_stage`); "" if they are pixels.
        """
        return self.image_encoder(images, train=train, start_after=start_after)

    def encode_to_stage(self, stage: str, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch ..."]:
        """Returns the output of the backbone stage `stage`. Only the parameters up to that stage are required."""
        return self.image_encoder.encode_to_stage(stage, images)

    def encode_texts(
        self, ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> TextFeatures:
        """Encodes texts, given as token ids of the text encoder.

        Args:
            ids: token ids with <s> and </s>.
            mask: True for tokens, False for padding.
            train: enables dropout; requires the RNG stream "dropout".

        Raises:
            ValueError: the model has no text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("this model was built without a text encoder")
        return self.text_encoder(ids, mask, train=train)

    def add_context(
        self,
        features: ImageFeatures,
        ids: Int[Array, "batch texts length"],
        mask: Bool[Array, "batch texts length"],
        *,
        train: bool = False,
    ) -> ImageFeatures:
        """Appends the context texts of each image to its memory, after the image positions.

        The decoder caches the keys and values of context positions like those of image positions. If an image has no
        context texts (its `mask` is all False), the decoder's outputs are the same as without context.

        Args:
            features: output of `encode_images`.
            ids: context texts as token ids of the text encoder; never the captions to be predicted.
            mask: True for tokens, False for padding; texts without tokens are ignored.
            train: enables dropout in the text encoder; requires the RNG stream "dropout".

        Raises:
            ValueError: the model was built without context, or there are more texts per image than it supports.
        """
        if self.context is None:
            raise ValueError("this model was built without context (config.model.context.max_texts=0)")
        texts = self.encode_texts(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1]), train=train)
        context, context_mask = self.context(texts, mask)
        image_mask = jnp.ones(features.memory.shape[:2], bool)
        return features.replace(
            memory=jnp.concatenate([features.memory, context.astype(features.memory.dtype)], axis=1),
            memory_mask=jnp.concatenate([image_mask, context_mask], axis=1),
            context_memory_length=context.shape[1],
        )

    def embed_images(self, features: ImageFeatures) -> Float[Array, "batch embedding"]:
        """Returns unit vectors of encoded images in the joint embedding space.

        Raises:
            ValueError: the model has no joint embedding.
        """
        return self._get_joint_embedding().embed_images(features.vector)

    def embed_texts(
        self, ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> Float[Array, "texts embedding"]:
        """Returns unit vectors of texts in the joint embedding space; see `encode_texts` for the arguments.

        Raises:
            ValueError: the model has no joint embedding.
        """
        return self._get_joint_embedding().embed_texts(self.encode_texts(ids, mask, train=train).vector)

    def similarity_scale(self) -> Float[Array, ""]:
        """Returns the factor by which similarities are multiplied in training, 1 / temperature."""
        return self._get_joint_embedding().similarity_scale()

    def decode(
        self,
        tokens: Int[Array, "*rows tokens"],
        features: ImageFeatures | Float[Array, "batch memory width"] | None = None,
        *,
        segments: Segments | None = None,
        memory_mask: Bool[Array, "batch memory"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """Runs the decoder on image features or a memory array, or continues from `cache`; see `Decoder`.

        `memory_mask` is combined with the mask in `features`: a position must be True in both.
        """
        memory, memory_mask = _get_memory(features, memory_mask)
        return self.decoder(
            tokens,
            memory,
            segments=segments,
            memory_mask=memory_mask,
            cache=cache,
            train=train,
            return_attention=return_attention,
        )

    def output_layer(self) -> tuple[Float[Array, "vocabulary width"], Float[Array, " vocabulary"]]:
        """Returns the weights and bias of the output layer; see `Decoder.output_layer`."""
        return self.decoder.output_layer()

    def start_cache(
        self,
        features: ImageFeatures | Float[Array, "batch memory width"],
        *,
        memory_mask: Bool[Array, "batch memory"] | None = None,
        rows: int = 1,
        groups: int = 1,
        length: int | None = None,
    ) -> Cache:
        """Returns an empty cache for `rows` captions per image; see `Decoder.start_cache`."""
        memory, memory_mask = _get_memory(features, memory_mask)
        return self.decoder.start_cache(memory, memory_mask=memory_mask, rows=rows, groups=groups, length=length)

    def _get_joint_embedding(self) -> JointEmbedding:
        if self.joint_embedding is None:
            raise ValueError("this model was built without a joint embedding")
        return self.joint_embedding

    def _init_text_parameters(self, features: ImageFeatures) -> None:
        """Creates the parameters of the submodules that `__call__` does not use, by running them."""
        ids = jnp.zeros((1, 1), jnp.int32)
        if self.joint_embedding is not None:
            self.embed_images(features)
            self.embed_texts(ids, ids == 0)
        elif self.text_encoder is not None:
            self.encode_texts(ids, ids == 0)
        if self.context is not None:
            ids = jnp.zeros((features.memory.shape[0], 1, 1), jnp.int32)
            self.add_context(features, ids, ids == 0)


def _get_memory(features, extra_mask):
    """Returns the memory, and its mask combined with `extra_mask`."""
    if not isinstance(features, ImageFeatures):
        return features, extra_mask
    masks = [mask for mask in (features.memory_mask, extra_mask) if mask is not None]
    return features.memory, functools.reduce(jnp.logical_and, masks) if masks else None
