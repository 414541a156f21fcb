"""The whole captioner: image encoder and decoder, and a text encoder where something uses one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.cache import Cache
from caption_jax.models.decoder import Decoder, DecoderOutput
from caption_jax.models.image_encoder import ImageEncoder, ImageFeatures

if TYPE_CHECKING:  # transformers takes seconds to import; most models have no text encoder
    from caption_jax.models.text_encoder import TextEncoder, TextFeatures


class ImageCaptioningModel(nn.Module):
    """Captions images: `images -> memory -> logits`.

    The decoder sees the image and the tokens before the one it predicts, nothing else: the text encoder, where there is
    one, stands beside this path and is reached through `encode_texts` only.

    Parameters lie under `image_encoder/`, `decoder/` and `text_encoder/`.

    Attributes:
        image_encoder: pixels to memory.
        decoder: memory and tokens to logits.
        text_encoder: texts to vectors; None (no parameters) unless something uses it.
    """

    image_encoder: ImageEncoder
    decoder: Decoder
    text_encoder: TextEncoder | None = None

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        tokens: Int[Array, "batch captions length"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch captions length vocabulary"]:
        """Teacher forcing: float32 scores of the token after each given token, one encoder pass for all captions.

        Args:
            images: normalised pixels.
            tokens: captions without their last token, from <s> on.
            train: dropout, stochastic depth and batch statistics; needs the random stream "dropout".
        """
        return self.decode(tokens, self.encode_images(images, train=train), train=train).logits

    def encode_images(self, images: Float[Array, "batch height width 3"], *, train: bool = False) -> ImageFeatures:
        """Memory for the decoder, and the image vector."""
        return self.image_encoder(images, train=train)

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

    def decode(
        self,
        tokens: Int[Array, "batch captions length"],
        features: ImageFeatures | Float[Array, "batch memory width"] | None = None,
        *,
        memory_mask: Bool[Array, "batch memory"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """Runs the decoder over `features` (or a bare memory), or on from `cache`; see `Decoder`."""
        return self.decoder(
            tokens,
            _memory(features),
            memory_mask=memory_mask,
            cache=cache,
            train=train,
            return_attention=return_attention,
        )

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
        return self.decoder.start_cache(
            _memory(features), memory_mask=memory_mask, rows=rows, groups=groups, length=length
        )


def _memory(features):
    return features.memory if isinstance(features, ImageFeatures) else features
