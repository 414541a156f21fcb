"""The captioning objective: teacher-forced next-token cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio


@dataclass(frozen=True)
class CaptionCrossEntropy(Objective):
    """Cross-entropy with label smoothing in nats, averaged over all caption tokens.

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
        table, bias = model.output_layer()  # logits = states @ table.T + bias, in chunks on CPU
        tokens = model.ops.vocabulary_cross_entropy(
            forward.decoded.states, table, bias, forward.targets, forward.weights, self.label_smoothing
        )
        return ObjectiveOutput(
            losses={"loss": Ratio(tokens.loss_sum, tokens.weight_sum)},
            metrics={"token_accuracy": Ratio(tokens.correct_sum, tokens.weight_sum)},
        )
