"""Forward pass that all objectives share, and its target tokens."""

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
    """Returns the weight of each target (tokens after <s>): 0 for padding tokens and padding examples, 1 otherwise."""
    is_token = batch["tokens"][..., 1:] != PAD
    return (is_token & batch["mask"][:, None, None]).astype(jnp.float32)


class CaptionRows(flax.struct.PyTreeNode):
    """Inputs and targets of the decoder for the captions of a batch.

    Inputs are all tokens of a caption except the last, and targets are all tokens except the first. A row contains
    either one caption, in arrays of shape [batch, captions, targets], or several packed captions.

    Attributes:
        inputs: input token ids of the decoder.
        targets: token ids for the decoder to predict.
        weights: 1 for targets that contribute to the loss, 0 for the others.
        segments: caption and position of each token.
    """

    inputs: Int[Array, "*rows tokens"]
    targets: Int[Array, "*rows tokens"]
    weights: Float[Array, "*rows tokens"]
    segments: Segments

    @classmethod
    def from_batch(cls, batch: Mapping[str, jax.Array]) -> CaptionRows:
        """Builds the rows of a batch, which is packed (see `input_pipeline.packing`) if it has "segment_ids"."""
        tokens = batch["tokens"]
        if "segment_ids" not in batch:
            inputs = tokens[..., :-1]
            return cls(inputs, tokens[..., 1:], target_weights(batch), Segments.one_per_row(inputs.shape))
        images, captions, length = tokens.shape
        ids, positions = batch["segment_ids"], batch["positions"]
        rows, block_length = len(ids), ids.shape[-1] if ids.ndim == 3 else None
        ids, positions = ids.reshape(rows, -1), positions.reshape(rows, -1)
        segments = Segments.packed(ids, positions, images * captions // rows, length - 1, block_length)
        inputs, targets = (batch[name].reshape(segments.segment_ids.shape) for name in ("inputs", "targets"))
        return cls(inputs, targets, (segments.segment_ids > 0).astype(jnp.float32), segments)


class ForwardPass:
    """Forward pass over a microbatch. Images are encoded on construction, and captions are decoded on first use.

    Per-token arrays use the row layout of the decoder: [batch, captions, targets], or packed (see `CaptionRows`).
    `to_tokens` and `to_captions` convert between the layouts, so an objective does not depend on which one is used.

    Args:
        model: model bound to its variables.
        images: normalised pixels [batch, height, width, 3], or the output of the backbone stage `start_after`.
        batch: "tokens" [batch, captions, length] and "mask", optionally with "context" and packed rows.
        start_after: see `ImageCaptioningModel.encode_images`.
        text_ids: maps token ids of the decoder to ids of the text encoder; None for models without a text encoder.
        mesh: mesh over which the batch is sharded; None for a single device.

    Attributes:
        image_features: image features, without context.
        memory: image features with the context of the batch, if there is any. The decoder attends to `memory.memory`.
        segments: caption and position of each token.
        targets: token ids for the decoder to predict.
        weights: 1 for targets that contribute to the loss, 0 for the others.
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
        self._model, self._captions_shape = model, batch["tokens"].shape[:2]
        self.text_ids, self.mesh = text_ids, mesh
        self.image_features: ImageFeatures = model.encode_images(images, train=True, start_after=start_after)
        self.memory = self.image_features
        if "context" in batch:
            context = text_ids(batch["context"])
            self.memory = model.add_context(self.image_features, context, context != PAD, train=True)
        self._rows = CaptionRows.from_batch(batch)
        self.segments = self._rows.segments
        self.targets: Int[Array, "*rows tokens"] = self._rows.targets
        self.weights: Float[Array, "*rows tokens"] = self._rows.weights

    @property
    def shards(self) -> int:
        """Number of devices over which the leading axis of each array is sharded."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @functools.cached_property
    def decoded(self) -> DecoderOutput:
        """Logits and final hidden states of the decoder, per token.

        Objectives should compute logits in chunks (`ops.token_chunks`), from the states and `model.output_layer()`,
        because the logits of all tokens take gigabytes. XLA does not compute logits that are not used.
        """
        return self._model.decode(self._rows.inputs, self.memory, segments=self.segments, train=True)

    def decode_again(self) -> DecoderOutput:
        """Runs the decoder once more on the same captions and memory, with other dropout masks."""
        return self._model.decode(self._rows.inputs, self.memory, segments=self.segments, train=True)

    def to_tokens(self, x: Array) -> Array:
        """Converts an array [batch, captions, targets, *features] to the layout of the decoder's output."""
        return self.segments.to_rows(x.reshape(self.segments.num_captions, *x.shape[2:]))

    def to_captions(self, x: Array) -> Array:
        """Inverts `to_tokens`. Padding that packing removed is filled with zeros."""
        captions = self.segments.to_captions(x)
        return captions.reshape(*self._captions_shape, *captions.shape[1:])
