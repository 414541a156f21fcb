"""Next-token prediction by a single model, or by an ensemble that averages probabilities."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.errors import ConfigError
from caption_jax.models.cache import Cache
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.ops.implementations import Ops

PyTree = Any
Features = ImageFeatures | Float[Array, "batch memory width"]


def average_probabilities(logits: Sequence[Float[Array, "*rows vocabulary"]]) -> Float[Array, "*rows vocabulary"]:
    """Returns the logarithm of the mean of the models' probabilities, given the logits of each model."""
    log_probs = [jax.nn.log_softmax(member) for member in logits]
    return functools.reduce(jnp.logaddexp, log_probs) - jnp.log(len(log_probs))


class Predictor:
    """Predicts the next tokens of captions for a batch of images, step by step.

    Args:
        model: a captioner, or a sequence of captioners (an ensemble, whose probabilities are averaged).
        variables: variables of the model (for an ensemble, a sequence with one entry per model).
        features: image features from `encode_images`, or only the memory array (for an ensemble, a sequence with one
            entry per model).
        memory_mask: True for memory positions to attend to, for all models; all positions if None.

    Raises:
        ValueError: the sequences of an ensemble differ in length, or its models differ in vocabulary size.
    """

    def __init__(
        self,
        model: ImageCaptioningModel | Sequence[ImageCaptioningModel],
        variables: PyTree | Sequence[PyTree],
        features: Features | Sequence[Features],
        memory_mask: Bool[Array, "batch memory"] | None = None,
    ):
        if isinstance(model, ImageCaptioningModel):
            model, variables, features = (model,), (variables,), (features,)
        if not len(model) == len(variables) == len(features):
            raise ValueError(
                f"an ensemble of {len(model)} models requires one set of variables and features per model, "
                f"got {len(variables)} and {len(features)}"
            )
        vocabulary_sizes = {member.decoder.vocabulary_size for member in model}
        if len(vocabulary_sizes) != 1:
            sizes = sorted(vocabulary_sizes)
            raise ConfigError(f"the models of an ensemble must share a vocabulary, got {sizes} tokens")
        self._members = tuple(zip(model, variables, features, strict=True))
        self._memory_mask = memory_mask
        self.vocabulary_size = vocabulary_sizes.pop()

    def limit_length(self, max_length: int) -> int:
        """Limits `max_length` to the maximum of the decoders, and returns the number of tokens after <s>."""
        return min(max_length, *(model.decoder.max_length for model, _, _ in self._members)) - 1

    @property
    def ops(self) -> Ops:
        """Kernel implementations of the first model."""
        return self._members[0][0].ops

    @property
    def batch_size(self) -> int:
        """Number of images in the batch."""
        return jax.tree.leaves(self._members[0][2])[0].shape[0]

    def start_caches(self, rows: int, groups: int, length: int) -> tuple[Cache, ...]:
        """Creates caches for `rows` captions of `length` tokens per image.

        The rows form `groups` groups of equal size and are reordered only within a group.
        """
        options = {"memory_mask": self._memory_mask, "rows": rows, "groups": groups, "length": length}
        return tuple(
            model.apply(variables, features, **options, method="start_cache")
            for model, variables, features in self._members
        )

    def step(
        self, tokens: Int[Array, "batch rows"], caches: tuple[Cache, ...]
    ) -> tuple[Float[Array, "batch rows vocabulary"], tuple[Cache, ...]]:
        """Feeds one token per row and returns the logits of the next token (log-probabilities for an ensemble)."""
        outputs = [
            model.apply(variables, tokens[:, :, None], cache=cache, method="decode")
            for (model, variables, _), cache in zip(self._members, caches, strict=True)
        ]
        logits = [output.logits[:, :, 0] for output in outputs]
        combined = logits[0] if len(logits) == 1 else average_probabilities(logits)
        return combined, tuple(output.cache for output in outputs)

    def compute_attention(
        self, tokens: Int[Array, "batch rows length"], bos_id: int, pad_id: int
    ) -> Float[Array, "batch rows length memory"]:
        """Computes the cross-attention when predicting each of `tokens`, averaged over layers, heads and models.

        Uses one teacher-forced pass over the finished captions, which is faster than storing attention while decoding.
        """
        bos = jnp.full_like(tokens[..., :1], bos_id)
        inputs = jnp.concatenate([bos, tokens[..., :-1]], axis=-1)
        attention_maps = [
            model.apply(
                variables, inputs, features, memory_mask=self._memory_mask, return_attention=True, method="decode"
            ).attention.mean((0, 3))
            for model, variables, features in self._members
        ]
        if len({attention_map.shape for attention_map in attention_maps}) > 1:
            raise ConfigError("return_attention requires all models of the ensemble to have the same memory length")
        return jnp.where((tokens != pad_id)[..., None], sum(attention_maps) / len(attention_maps), 0.0)
