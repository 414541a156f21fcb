"""What the terms of an objective share: the captioner's pass over a batch, and the tokens it is to predict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import DecoderOutput
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.ops.segments import Segments
from input_pipeline.special_tokens import PAD


def target_weights(batch: Mapping[str, jax.Array]) -> Float[Array, "batch captions targets"]:
    """Weight of each predicted token (captions without <s>): 0 for pads and padding examples, 1 for the others."""
    real = batch["tokens"][..., 1:] != PAD
    return (real & batch["mask"][:, None, None]).astype(jnp.float32)


class CaptionRows(flax.struct.PyTreeNode):
    """The captions of a batch as the decoder reads and predicts them, all tokens but the last and all but the first.

    A row is a caption, [batch, captions, targets], or holds several without pads, as `segments` tells.

    Attributes:
        inputs: token ids that the decoder reads.
        targets: token ids that it predicts from them.
        weights: 1 for each target that counts, 0 for the others.
        segments: the caption and position of each token.
    """

    inputs: Int[Array, "*rows tokens"]
    targets: Int[Array, "*rows tokens"]
    weights: Float[Array, "*rows tokens"]
    segments: Segments

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> CaptionRows:
        """The rows of a training batch: packed by `input_pipeline.packing`, or without "segment_ids" unpacked."""
        tokens = batch["tokens"]
        if "segment_ids" not in batch:
            inputs = tokens[..., :-1]
            return cls(inputs, tokens[..., 1:], target_weights(batch), Segments.one_per_row(inputs.shape))
        images, captions, length = tokens.shape
        ids, positions = batch["segment_ids"], batch["positions"]
        segments = Segments.packed(ids, positions, per_row=images * captions // len(ids), length=length - 1)
        inputs, targets = (batch[name].reshape(segments.segment_ids.shape) for name in ("inputs", "targets"))
        return cls(inputs, targets, (segments.segment_ids > 0).astype(jnp.float32), segments)


class ForwardPass:
    """The training pass over a microbatch: images are encoded once, captions decoded once, by whoever asks first.

    Arrays "of tokens" lie in the rows that the decoder reads: [batch, captions, targets], or packed (`CaptionRows`).
    `to_tokens` and `to_captions` go from one layout to the other, so that an objective need not know which it is.

    Args:
        model: bound to its variables.
        images: normalised pixels [batch, height, width, 3], or the output of the encoder's stage `start_after`.
        batch: "tokens" [batch, captions, length] and "mask"; "context" and packed rows where the run has them.
        start_after: see `ImageCaptioningModel.encode_images`.
        text_ids: from the decoder's token ids to the text encoder's; None for a model without text encoder.
        mesh: devices that the batch is spread over, which the contrastive objective gathers from; None for one.

    Attributes:
        images: features of the images alone.
        memory: what the decoder attends to: the same, with the batch's context where it has any.
        segments: the caption and position of each token.
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
        self._model, self._captions = model, batch["tokens"].shape[:2]
        self.text_ids, self.mesh = text_ids, mesh
        self.images: ImageFeatures = model.encode_images(images, train=True, start_after=start_after)
        self.memory = self.images
        if "context" in batch:
            context = text_ids(batch["context"])
            self.memory = model.add_context(self.images, context, context != PAD, train=True)
        self._rows = CaptionRows.of(batch)
        self.segments = self._rows.segments
        self.targets: Int[Array, "*rows tokens"] = self._rows.targets
        self.weights: Float[Array, "*rows tokens"] = self._rows.weights

    @functools.cached_property
    def decoded(self) -> DecoderOutput:
        """Logits and states of the next tokens, of tokens.

        Of packed rows the states and `model.output_layer()` are to be used chunk by chunk, as the rows of a CPU hold
        all tokens of the batch. XLA computes no logits that nothing reads.
        """
        return self._model.decode(self._rows.inputs, self.memory, segments=self.segments, train=True)

    def to_tokens(self, x: Array) -> Array:
        """[batch, captions, targets, *features] in the layout of the decoder's output."""
        return self.segments.to_rows(x.reshape(self.segments.captions, *x.shape[2:]))

    def to_captions(self, x: Array) -> Array:
        """The inverse of `to_tokens`; 0 where packing left a pad out."""
        captions = self.segments.to_captions(x)
        return captions.reshape(*self._captions, *captions.shape[1:])
