"""All terms of a run's loss: the captions' own, those of the joint embedding, and those that the config names."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from caption_jax.errors import ConfigError
from caption_jax.objectives.caption_cross_entropy import CaptionCrossEntropy
from caption_jax.objectives.contrastive import Contrastive
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, nonzero
from caption_jax.specs import ObjectiveSpec

CAPTIONS, CONTRASTIVE = "captions", "contrastive"
# By objective and term: the whole batch's count, which the term's sum is divided by.
Denominators = dict[str, dict[str, jax.Array]]


def objectives_of(spec: ObjectiveSpec, *, joint_embedding: bool) -> dict[str, Objective]:
    """The objectives of a run by label; the sum of their weighted terms is minimised.

    Args:
        spec: `config.objective`.
        joint_embedding: whether the model has a joint embedding of images and texts.

    Raises:
        ConfigError: a label that is taken, or an extension that is no objective.
    """
    objectives: dict[str, Objective] = {CAPTIONS: CaptionCrossEntropy(label_smoothing=spec.label_smoothing)}
    if joint_embedding:
        objectives[CONTRASTIVE] = Contrastive(weight=spec.contrastive_weight)
    for label, objective in spec.terms.items():
        if label in (CAPTIONS, CONTRASTIVE):
            raise ConfigError(f"config.objective.terms.{label}: this label is taken; choose another one")
        if not isinstance(objective, Objective):
            raise ConfigError(
                f"config.objective.terms.{label}: {type(objective).__name__} is no objective: it has to have what "
                "caption_jax.objectives.objective.Objective lists"
            )
        objectives[label] = objective
    return objectives


def check_batch(objectives: Mapping[str, Objective], batch: Batch) -> None:
    """Raises ConfigError where a batch lacks a field that an objective reads."""
    for label, objective in objectives.items():
        if missing := [field for field in objective.batch_fields if field not in batch]:
            raise ConfigError(
                f"the objective {label!r} reads {', '.join(missing)}, but this run's batches hold "
                f"{', '.join(sorted(batch))} only"
            )


def counts(outputs: Mapping[str, ObjectiveOutput]) -> Denominators:
    """The counts of all losses."""
    return {label: {name: ratio.count for name, ratio in output.losses.items()} for label, output in outputs.items()}


def total_loss(
    objectives: Mapping[str, Objective], outputs: Mapping[str, ObjectiveOutput], denominators: Denominators
) -> jax.Array:
    """The weighted sum of all losses; a microbatch's part of it, where the denominators are of the whole batch."""
    return sum(
        objectives[label].weight * ratio.total / nonzero(jax.lax.stop_gradient(denominators[label][name]))
        for label, output in outputs.items()
        for name, ratio in output.losses.items()
    )


def mean_metrics(outputs: Mapping[str, ObjectiveOutput]) -> dict[str, jax.Array]:
    """Means of all losses, each without its weight, and of all metrics.

    Names from the objectives that the config adds are prefixed with "label/". "loss" is the captions' cross-entropy.
    """
    return {
        name if label in (CAPTIONS, CONTRASTIVE) else f"{label}/{name}": ratio.mean()
        for label, output in outputs.items()
        for name, ratio in {**output.losses, **output.metrics}.items()
    }
