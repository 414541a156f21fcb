"""The captioning objective: cross-entropy of the next token under teacher forcing."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio


@dataclass(frozen=True)
class CaptionCrossEntropy(Objective):
    """Mean over the captions' tokens, in nats, of the cross-entropy with smoothed labels.

    Attributes:
        weight: in the loss.
        label_smoothing: see `token_cross_entropy_reference`.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """The loss, and how many tokens are the most probable ones."""
        table, bias = model.output_layer()  # logits are states @ table.T + bias, on a CPU a few rows at a time
        tokens = model.ops.vocabulary_cross_entropy(
            forward.decoded.states, table, bias, forward.targets, forward.weights, self.label_smoothing
        )
        return ObjectiveOutput(
            losses={"loss": Ratio(tokens.loss_sum, tokens.weight_sum)},
            metrics={"token_accuracy": Ratio(tokens.correct_sum, tokens.weight_sum)},
        )
