"""The captioning objective: teacher-forced next-token cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio


@dataclass(frozen=True)
class CaptionCrossEntropy(Objective):
    """Cross-entropy in nats with label smoothing, averaged over all target tokens.

    Attributes:
        weight: weight of this objective in the total loss.
        label_smoothing: see `token_cross_entropy_reference`.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Returns the loss and the token accuracy."""
        embedding, bias = model.output_layer()
        token_loss = model.ops.vocabulary_cross_entropy(
            forward.decoded.states,
            embedding,
            bias,
            forward.targets,
            forward.weights,
            self.label_smoothing,
            shards=forward.shards,
        )
        return ObjectiveOutput(
            losses={"loss": Ratio(token_loss.loss_sum, token_loss.weight_sum)},
            metrics={"token_accuracy": Ratio(token_loss.correct_sum, token_loss.weight_sum)},
        )
