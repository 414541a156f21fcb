"""The next token's distribution, from one model or from an ensemble averaged in probability."""

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
from caption_jax.ops.forms import Ops

PyTree = Any
Features = ImageFeatures | Float[Array, "batch memory width"]


class Predictor:
    """Scores next tokens of captions of a batch of images, step by step.

    Args:
        model: the captioner, or a sequence of captioners: an ensemble, whose probabilities are averaged.
        variables: its variables; for an ensemble a sequence, one a model.
        features: of the images, from `encode_images`, or a bare memory; for an ensemble a sequence, one a model.
        memory_mask: True for memory slots that count, for all models; None for all slots.

    Raises:
        ValueError: an ensemble whose parts differ in number or in vocabulary.
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
                f"an ensemble of {len(model)} models needs as many variables and features, "
                f"not {len(variables)} and {len(features)}"
            )
        sizes = {member.decoder.vocabulary_size for member in model}
        if len(sizes) != 1:
            raise ConfigError(f"the models of an ensemble must share a vocabulary; theirs have {sorted(sizes)} tokens")
        self._members = tuple(zip(model, variables, features, strict=True))
        self._memory_mask = memory_mask
        self.vocabulary_size = sizes.pop()

    def limit(self, max_length: int) -> int:
        """Most tokens after <s>, given a limit that counts <s>: what the decoders have positions for, at most."""
        return min(max_length, *(model.decoder.max_length for model, _, _ in self._members)) - 1

    @property
    def ops(self) -> Ops:
        """Form of the operations, that of the first model."""
        return self._members[0][0].ops

    @property
    def batch(self) -> int:
        """Number of images."""
        return jax.tree.leaves(self._members[0][2])[0].shape[0]

    def start(self, rows: int, groups: int, length: int) -> tuple[Cache, ...]:
        """Caches for `rows` captions an image of `length` tokens; rows change places within `groups` groups."""
        options = {"memory_mask": self._memory_mask, "rows": rows, "groups": groups, "length": length}
        return tuple(
            model.apply(variables, features, **options, method="start_cache")
            for model, variables, features in self._members
        )

    def step(
        self, tokens: Int[Array, "batch rows"], caches: tuple[Cache, ...]
    ) -> tuple[Float[Array, "batch rows vocabulary"], tuple[Cache, ...]]:
        """Takes in one token a row; returns the logits of the next one (of an ensemble: log-probabilities)."""
        outputs = [
            model.apply(variables, tokens[:, :, None], cache=cache, method="decode")
            for (model, variables, _), cache in zip(self._members, caches, strict=True)
        ]
        logits = [output.logits[:, :, 0] for output in outputs]
        if len(logits) > 1:
            log_probs = [jax.nn.log_softmax(member) for member in logits]
            logits = [functools.reduce(jnp.logaddexp, log_probs) - jnp.log(len(log_probs))]
        return logits[0], tuple(output.cache for output in outputs)

    def attention(
        self, tokens: Int[Array, "batch rows length"], bos_id: int, pad_id: int
    ) -> Float[Array, "batch rows length memory"]:
        """Cross-attention while each of `tokens` was predicted, averaged over layers, heads and models.

        One teacher-forced pass over finished captions costs less than keeping attention through the search.
        """
        first = jnp.full_like(tokens[..., :1], bos_id)
        inputs = jnp.concatenate([first, tokens[..., :-1]], axis=-1)
        maps = [
            model.apply(
                variables, inputs, features, memory_mask=self._memory_mask, return_attention=True, method="decode"
            ).attention.mean((0, 3))
            for model, variables, features in self._members
        ]
        if len({m.shape for m in maps}) > 1:
            raise ConfigError("attention of an ensemble needs models whose memories have the same number of slots")
        return jnp.where((tokens != pad_id)[..., None], sum(maps) / len(maps), 0.0)
