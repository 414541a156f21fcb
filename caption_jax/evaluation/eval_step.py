"""The evaluation step, a pure function of the variables and a batch."""

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
    model: ImageCaptioningModel,
    description: RunDescription,
    evaluators: Sequence[tuple[Evaluator, Any]] = (),
    *,
    shards: int = 1,
) -> Callable[[PyTree, Batch], dict[str, PyTree]]:
    """Builds the step `(variables, batch) -> outputs`, which decodes captions and computes the teacher-forced loss.

    The outputs are `tokens` [batch, length] and `log_prob` [batch] of the decoded captions; `loss_sum`, `correct_sum`
    and `weight_sum` over the reference tokens (without label smoothing); `evaluators`, a list with the outputs of each
    evaluator; and `index` and `mask`, copied from the batch.

    Args:
        model: the model of the run.
        description: the run description.
        evaluators: (evaluator, prepared state) pairs.
        shards: number of devices over which the batch is sharded.
    """
    decode_spec = description.spec.decode

    def step(variables: PyTree, batch: Batch) -> dict[str, PyTree]:
        features, decoded = caption_batch(model, variables, batch, description, decode_spec)
        inputs, targets = batch["tokens"][..., :-1], batch["tokens"][..., 1:]
        states = model.apply(variables, inputs, features, train=False, method="decode").states
        output_layer = model.apply(variables, method="output_layer")
        loss = model.ops.vocabulary_cross_entropy(states, *output_layer, targets, target_weights(batch), shards=shards)
        pixels = description.preprocessing.normalise(batch["image"])
        eval_batch = EvalBatch(model, variables, pixels, features, batch, decoded)
        return {
            "evaluators": [evaluator.outputs(state, eval_batch) for evaluator, state in evaluators],
            "tokens": decoded.tokens,
            "log_prob": decoded.log_prob,
            "loss_sum": loss.loss_sum,
            "correct_sum": loss.correct_sum,
            "weight_sum": loss.weight_sum,
            "index": batch["index"],
            "mask": batch["mask"],
        }

    return step
