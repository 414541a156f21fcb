"""One batch of an evaluation as a pure function of variables and batch: captions, and the loss of the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from caption_jax.evaluation.evaluator import EvalBatch, Evaluator
from caption_jax.inference.captioning import caption_batch
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import target_weights
from caption_jax.runs.description import RunDescription

PyTree = Any
Batch = dict[str, jax.Array]


def make_eval_step(
    model: ImageCaptioningModel, description: RunDescription, evaluators: Sequence[tuple[Evaluator, Any]] = ()
) -> Callable[[PyTree, Batch], dict[str, PyTree]]:
    """Builds `(variables, batch) -> outputs`: captions decoded for the images, and the loss of the references.

    Outputs: `tokens` [batch, length] and `log_prob` [batch] of the decoded captions; `loss_sum`, `correct_sum` and
    `weight_sum` over the reference tokens (no label smoothing); `evaluators`, what each evaluator adds, in their order;
    `index` and `mask` as in the batch.

    Args:
        model: the captioner.
        description: of the run.
        evaluators: with what each has prepared.
    """
    settings = description.spec.decode

    def step(variables: PyTree, batch: Batch) -> dict[str, PyTree]:
        features, decoded = caption_batch(model, variables, batch, description, settings)
        taught = model.apply(variables, batch["tokens"][..., :-1], features, train=False, method="decode")
        loss = model.ops.token_cross_entropy(taught.logits, batch["tokens"][..., 1:], target_weights(batch), 0.0)
        images = description.preprocessing.normalise(batch["image"])
        seen = EvalBatch(model, variables, images, features, batch, decoded)
        return {
            "evaluators": [evaluator.outputs(state, seen) for evaluator, state in evaluators],
            "tokens": decoded.tokens,
            "log_prob": decoded.log_prob,
            "loss_sum": loss.loss_sum,
            "correct_sum": loss.correct_sum,
            "weight_sum": loss.weight_sum,
            "index": batch["index"],
            "mask": batch["mask"],
        }

    return step
