"""Objectives for tests: one with constants, which penalises frequent tokens, and one that compares rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from caption_jax.objectives.objective import Objective, ObjectiveOutput, Ratio

NAME = "token_frequencies:FrequentTokens"


@dataclasses.dataclass(frozen=True)
class FrequentTokens(Objective):
    """Expected training-set frequency of the predicted tokens, raised to a power."""

    weight: float = 1.0
    power: float = 1.0

    def prepare(self, train, vocabulary):
        tokens = np.concatenate([vocabulary.encode(text, 10) for record in train for text in record.captions])
        counts = np.bincount(tokens, minlength=vocabulary.size).astype(np.float32)
        return {"tokens": {"frequency": (counts / counts.sum()) ** self.power}}

    def __call__(self, model, forward, batch, constants, key):
        expected = jax.nn.softmax(forward.decoded.logits) @ constants["tokens"]["frequency"]
        return ObjectiveOutput({"loss": Ratio((expected * forward.weights).sum(), forward.weights.sum())}, {})


@dataclasses.dataclass(frozen=True)
class ImageVariance(Objective):
    """Variance of the image vectors, which depends on all rows of a batch."""

    weight: float = 1.0
    accumulates = False
    batch_fields = ("mask", "depth")

    def __call__(self, model, forward, batch, constants, key):
        return ObjectiveOutput({"loss": Ratio(jnp.var(forward.image_features.vector), jnp.ones(()))}, {})
