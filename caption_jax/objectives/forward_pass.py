"""What the terms of an objective share: the captioner's pass over a batch, and the tokens it is to predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import DecoderOutput
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.models.packing import Packing
from input_pipeline.special_tokens import PAD


def target_weights(batch: Mapping[str, jax.Array]) -> Float[Array, "batch captions targets"]:
    """Weight of each predicted token (captions without <s>): 0 for pads and padding rows, 1 for the others."""
    real = batch["tokens"][..., 1:] != PAD
    return (real & batch["mask"][:, None, None]).astype(jnp.float32)


class ForwardPass:
    """The training pass over a microbatch: images are encoded once, captions decoded once, by whoever asks first.

    The decoder reads all tokens of a caption but the last and predicts all but the first. Arrays "of tokens" lie as the
    decoder has them: [batch, captions, targets], or packed, where the batch holds "places". `to_tokens` and
    `to_captions` go from one layout to the other, so that an objective need not know which it is.

    Args:
        model: bound to its variables.
        images: normalised pixels [batch, height, width, 3], or the output of the encoder's stage `start_after`.
        batch: "tokens" [batch, captions, length] and "mask"; "context" and "places" where the run has them.
        start_after: see `ImageCaptioningModel.encode_images`.
        text_ids: from the decoder's token ids to the text encoder's; None for a model without text encoder.
        mesh: devices that the batch is spread over; None for one.

    Attributes:
        images: features of the images alone.
        memory: what the decoder attends to: the same, with the batch's context where it has any.
        targets: token ids that the decoder is to predict, of tokens.
        weights: 1 for each target that counts, 0 for the others, of tokens.
    """

    def __init__(
        self,
        model: ImageCaptioningModel,
        images: Float[Array, "batch height width inputs"],
        batch: Mapping[str, jax.Array],
        *,
        start_after: str = "",
        text_ids: Callable[[jax.Array], jax.Array] | None = None,
        mesh: Mesh | None = None,
    ):
        self._model, self._tokens = model, batch["tokens"]
        self.text_ids, self.mesh = text_ids, mesh
        self.images: ImageFeatures = model.encode_images(images, train=True, start_after=start_after)
        self.memory = self.images
        if "context" in batch:
            context = text_ids(batch["context"])
            self.memory = model.add_context(self.images, context, context != PAD, train=True)
        targets = self._tokens[..., 1:]
        self.packing = Packing.of(batch["places"], targets.shape) if "places" in batch else None
        self.targets: Int[Array, "*tokens"] = self.to_tokens(targets)
        self.weights: Float[Array, "*tokens"] = self.to_tokens(target_weights(batch))

    @functools.cached_property
    def decoded(self) -> DecoderOutput:
        """Logits and states of the next tokens, of tokens.

        Where `packing` is not None the states and `model.output_layer()` are to be used piece by piece: logits of a
        whole batch are what packing avoids. XLA computes none that nothing reads.
        """
        return self._model.decode(self._tokens[..., :-1], self.memory, packing=self.packing, train=True)

    def to_tokens(self, x: Array) -> Array:
        """[batch, captions, targets, *features] in the layout of the decoder's output."""
        return x if self.packing is None else self.packing.pack(x)

    def to_captions(self, x: Array) -> Array:
        """The inverse of `to_tokens`; 0 where packing left a pad out."""
        return x if self.packing is None else self.packing.unpack(x)
