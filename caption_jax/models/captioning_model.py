"""The whole captioner: image encoder and decoder, and a text encoder where something uses one."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import Cache
from caption_jax.models.context_memory import ContextMemory
from caption_jax.models.decoder import Decoder, DecoderOutput
from caption_jax.models.image_encoder import ImageEncoder, ImageFeatures
from caption_jax.models.joint_embedding import SharedSpace
from caption_jax.models.text_encoder import TextEncoder, TextFeatures
from caption_jax.ops.forms import Ops
from caption_jax.ops.segments import Segments


class ImageCaptioningModel(nn.Module):
    """Captions images: `images -> memory -> logits`.

    The decoder sees the image, the texts given to `add_context` and the tokens before the one it predicts, nothing
    else: what the text encoder makes of captions that are to be predicted (`embed_texts`) goes elsewhere.

    Parameters lie under `image_encoder/`, `decoder/`, `text_encoder/`, `shared_space/` and `context/`.

    Attributes:
        image_encoder: pixels to memory.
        decoder: memory and tokens to logits.
        text_encoder: texts to vectors; None (no parameters) unless something uses it.
        shared_space: puts images and texts in one space; needs a text encoder, and an image encoder with a vector.
        context: makes memory of texts that stand beside an image; needs a text encoder.
    """

    image_encoder: ImageEncoder
    decoder: Decoder
    text_encoder: TextEncoder | None = None
    shared_space: SharedSpace | None = None
    context: ContextMemory | None = None

    @property
    def ops(self) -> Ops:
        """Form of the operations, for what is computed around the model: its loss, augmentation, a search."""
        return self.decoder.ops

    def __call__(
        self,
        images: Float[Array, "batch height width inputs"],
        tokens: Int[Array, "batch captions length"],
        *,
        train: bool = False,
        start_after: str = "",
    ) -> Float[Array, "batch captions length vocabulary"]:
        """Teacher forcing: float32 scores of the token after each given token, one encoder pass for all captions.

        Initialisation calls it, and whoever uses the model alone. Training goes through
        `objectives.forward_pass.ForwardPass`, which does the same in parts, as the terms of the loss need them.

        Args:
            images: normalised pixels, or the output of the encoder's stage `start_after`.
            tokens: captions without their last token, from <s> on.
            train: dropout, stochastic depth and batch statistics; needs the random stream "dropout".
            start_after: see `encode_images`.
        """
        features = self.encode_images(images, train=train, start_after=start_after)
        if self.is_initializing():
            self._make_text_parameters(features)
        return self.decode(tokens, features, train=train).logits

    def encode_images(
        self, images: Float[Array, "batch height width inputs"], *, train: bool = False, start_after: str = ""
    ) -> ImageFeatures:
        """Memory for the decoder, and the image vector.

        Args:
            images: normalised pixels, or the output of the encoder's stage `start_after`.
            train: dropout, stochastic depth and batch statistics.
            start_after: stage of the backbone whose output `images` is, as `encode_up_to` gives it; "" for pixels.
        """
        return self.image_encoder(images, train=train, start_after=start_after)

    def encode_up_to(self, stage: str, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch ..."]:
        """What the image encoder's `stage` gives for normalised pixels: its parameters up to there are enough."""
        return self.image_encoder.up_to(stage, images)

    def encode_texts(
        self, ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> TextFeatures:
        """Features of texts, in the text encoder's own token ids.

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
        """Features whose memory goes on, behind the image's slots, with texts that stand beside each image.

        They are part of the memory from here on: the cache holds them projected, like the image's slots. Without any
        text (all of `mask` False) the decoder says what it says without context.

        Args:
            features: from `encode_images`.
            ids: texts in the text encoder's own token ids; never those that are to be predicted.
            mask: True for real tokens; a text without any is none.
            train: dropout of the text encoder; needs the random stream "dropout".

        Raises:
            ValueError: the model has no slots for context, or fewer than there are texts.
        """
        if self.context is None:
            raise ValueError("this model was built without context (config.model.context.slots=0)")
        found = self.encode_texts(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1]), train=train)
        slots, counts = self.context(found, mask)
        images = jnp.ones(features.memory.shape[:2], bool)
        return features.replace(
            memory=jnp.concatenate([features.memory, slots.astype(features.memory.dtype)], axis=1),
            memory_mask=jnp.concatenate([images, counts], axis=1),
            context_slots=slots.shape[1],
        )

    def embed_images(self, features: ImageFeatures) -> Float[Array, "batch shared"]:
        """Unit vectors, in the space shared with texts, of images that `encode_images` has seen.

        Raises:
            ValueError: the model has no shared space.
        """
        return self._space().images(features.vector)

    def embed_texts(
        self, ids: Int[Array, "texts length"], mask: Bool[Array, "texts length"], *, train: bool = False
    ) -> Float[Array, "texts shared"]:
        """Unit vectors of texts, in the space shared with images; arguments as in `encode_texts`."""
        return self._space().texts(self.encode_texts(ids, mask, train=train).vector)

    def similarity_scale(self) -> Float[Array, ""]:
        """What similarities of unit vectors are multiplied by in training: 1 / temperature."""
        return self._space().scale()

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
        """Runs the decoder over `features` (or a bare memory), or on from `cache`; see `Decoder`.

        `memory_mask` hides slots beside those that the features themselves hide.
        """
        memory, memory_mask = _memory(features, memory_mask)
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
        """Table and bias that make logits of the decoder's states; see `Decoder`."""
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
        """A cache for `rows` captions an image, from `features` or a bare memory; see `Decoder.start_cache`."""
        memory, memory_mask = _memory(features, memory_mask)
        return self.decoder.start_cache(memory, memory_mask=memory_mask, rows=rows, groups=groups, length=length)

    def _space(self) -> SharedSpace:
        if self.shared_space is None:
            raise ValueError("this model was built without a space that images and texts share")
        return self.shared_space

    def _make_text_parameters(self, features: ImageFeatures) -> None:
        """Touches what teacher forcing does not, so that initialisation makes its parameters too."""
        nothing = jnp.zeros((1, 1), jnp.int32)
        if self.shared_space is not None:
            self.embed_images(features)
            self.embed_texts(nothing, nothing == 0)
        elif self.text_encoder is not None:
            self.encode_texts(nothing, nothing == 0)
        if self.context is not None:
            nothing = jnp.zeros((features.memory.shape[0], 1, 1), jnp.int32)
            self.add_context(features, nothing, nothing == 0)


def _memory(features, mask):
    """The memory, and which of its slots count."""
    if not isinstance(features, ImageFeatures):
        return features, mask
    masks = [given for given in (features.memory_mask, mask) if given is not None]
    return features.memory, functools.reduce(jnp.logical_and, masks) if masks else None
