"""The evaluation step, a pure function of the variables and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from caption_jax.decoding.consensus import Consensus
from caption_jax.decoding.predictor import average_probabilities
from caption_jax.evaluation.evaluator import EvalBatch, Evaluator
from caption_jax.inference.captioning import decode_features, encode_batch
from caption_jax.inference.ensemble import join_ensemble
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.objectives.forward_pass import target_weights
from caption_jax.ops.cross_entropy import TokenLoss, token_cross_entropy_reference
from caption_jax.parameters.stored_dtypes import restore
from caption_jax.runs.description import RunDescription

PyTree = Any
Batch = dict[str, jax.Array]


def make_eval_step(
    model: ImageCaptioningModel,
    description: RunDescription,
    evaluators: Sequence[tuple[Evaluator, Any]] = (),
    *,
    shards: int = 1,
    others: Sequence[RunDescription] = (),
    consensus: Consensus | None = None,
) -> Callable[..., dict[str, PyTree]]:
    """Builds the step `(variables, batch) -> outputs`, which decodes captions and computes the teacher-forced loss.

    The third argument is the variables of the other models of an ensemble, and the fourth the constants of each
    evaluator (`Evaluator.constants`), both as sequences.

    The outputs are `tokens` [batch, length] and `log_prob` [batch] of the decoded captions; `loss_sum`, `correct_sum`
    and `weight_sum` over the reference tokens (without label smoothing); `evaluators`, a list with the outputs of each
    evaluator; and `index` and `mask`, copied from the batch.

    Args:
        model: the model of the run.
        description: the run description.
        evaluators: (evaluator, prepared state) pairs.
        shards: number of devices over which the batch is sharded.
        others: descriptions of the other models of an ensemble; see `join_ensemble`.
        consensus: see `make_consensus`; required if `consensus_weight` is not 0.
    """
    decode_spec = description.spec.decode

    def step(
        variables: PyTree, batch: Batch, other_variables: Sequence[PyTree] = (), constants: Sequence[PyTree] = ()
    ) -> dict[str, PyTree]:
        variables = restore(variables)
        features = encode_batch(model, variables, batch, description)
        ensemble = join_ensemble(model, variables, features, batch["image"], others, other_variables)
        options = {"image_ids": batch.get("index"), "consensus": consensus}
        decoded = decode_features(*ensemble, description, decode_spec, **options)
        if others:
            loss = _compute_ensemble_loss(*ensemble, batch)
        else:
            loss = _compute_loss(model, variables, features, batch, shards)
        pixels = description.preprocessing.normalise(batch["image"])
        eval_batch = EvalBatch(model, variables, pixels, features, batch, decoded)
        constants = constants or [()] * len(evaluators)
        return {
            "evaluators": [
                evaluator.outputs(state, eval_batch._replace(constants=arrays))
                for (evaluator, state), arrays in zip(evaluators, constants, strict=True)
            ],
            "tokens": decoded.tokens,
            "log_prob": decoded.log_prob,
            "loss_sum": loss.loss_sum,
            "correct_sum": loss.correct_sum,
            "weight_sum": loss.weight_sum,
            "index": batch["index"],
            "mask": batch["mask"],
        }

    return step


def _compute_loss(
    model: ImageCaptioningModel, variables: PyTree, features: ImageFeatures, batch: Batch, shards: int
) -> TokenLoss:
    """Computes the cross-entropy of the references."""
    inputs, targets = batch["tokens"][..., :-1], batch["tokens"][..., 1:]
    states = model.apply(variables, inputs, features, train=False, method="decode").states
    output_layer = model.apply(variables, method="output_layer")
    return model.ops.vocabulary_cross_entropy(states, *output_layer, targets, target_weights(batch), shards=shards)


def _compute_ensemble_loss(
    models: Sequence[ImageCaptioningModel], variables: Sequence[PyTree], features: Sequence[ImageFeatures], batch: Batch
) -> TokenLoss:
    """Computes the cross-entropy of the references under the mean of the models' probabilities.

    This requires the logits of all models, which are computed for one caption of each image at a time.
    """
    members = list(zip(models, variables, features, strict=True))

    def compute_for_captions(tokens: jax.Array, weights: jax.Array) -> TokenLoss:
        inputs, targets = tokens[:, None, :-1], tokens[:, 1:]
        outputs = [model.apply(params, inputs, memory, method="decode") for model, params, memory in members]
        log_probs = average_probabilities([output.logits[:, 0] for output in outputs])
        return token_cross_entropy_reference(log_probs, targets, weights)

    captions = batch["tokens"].swapaxes(0, 1), target_weights(batch).swapaxes(0, 1)
    return jax.tree.map(jnp.sum, jax.lax.map(lambda caption: compute_for_captions(*caption), captions))
