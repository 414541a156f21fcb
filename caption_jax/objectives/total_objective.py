"""Total loss of a run, a weighted sum of captioning, contrastive and extension objectives."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from caption_jax.errors import ConfigError
from caption_jax.objectives.caption_cross_entropy import CaptionCrossEntropy
from caption_jax.objectives.contrastive import Contrastive
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, replace_zero
from caption_jax.specs import ObjectiveSpec

CAPTIONS, CONTRASTIVE = "captions", "contrastive"
# Counts over the whole batch, by objective and loss. The sum of each loss is divided by its count.
Denominators = dict[str, dict[str, Float[Array, ""]]]


def make_objectives(spec: ObjectiveSpec, *, joint_embedding: bool) -> dict[str, Objective]:
    """Returns the objectives of a run by label. Training minimises their weighted sum.

    Args:
        spec: the `objective` section of a run's spec.
        joint_embedding: whether the model has a joint embedding of images and captions.

    Raises:
        ConfigError: a label is reserved, or an extension does not implement `Objective`.
    """
    objectives: dict[str, Objective] = {CAPTIONS: CaptionCrossEntropy(spec.caption_weight, spec.label_smoothing)}
    if joint_embedding:
        objectives[CONTRASTIVE] = Contrastive(weight=spec.contrastive_weight)
    for label, objective in spec.terms.items():
        if label in (CAPTIONS, CONTRASTIVE):
            raise ConfigError(f"config.objective.terms.{label}: this label is reserved; choose another one")
        if not isinstance(objective, Objective):
            raise ConfigError(
                f"config.objective.terms.{label}: {type(objective).__name__} is not an objective; it must implement "
                "caption_jax.objectives.objective.Objective"
            )
        objectives[label] = objective
    return objectives


def check_batch(objectives: Mapping[str, Objective], batch: Batch) -> None:
    """Raises ConfigError if a batch lacks a field that an objective reads."""
    for label, objective in objectives.items():
        if missing := [field for field in objective.batch_fields if field not in batch]:
            raise ConfigError(
                f"the objective {label!r} requires {', '.join(missing)}, but the batches of this run only contain "
                f"{', '.join(sorted(batch))}"
            )


def get_counts(outputs: Mapping[str, ObjectiveOutput]) -> Denominators:
    """Returns the counts of all losses."""
    return {label: {name: ratio.count for name, ratio in output.losses.items()} for label, output in outputs.items()}


def total_loss(
    objectives: Mapping[str, Objective], outputs: Mapping[str, ObjectiveOutput], denominators: Denominators
) -> Float[Array, ""]:
    """Returns the weighted sum of all losses.

    If `outputs` are those of a microbatch and `denominators` those of the whole batch, the result is the contribution
    of the microbatch to the total loss. Objectives of weight 0 have no backward pass.
    """
    terms = (
        objectives[label].weight * ratio.total / replace_zero(jax.lax.stop_gradient(denominators[label][name]))
        for label, output in outputs.items()
        if objectives[label].weight
        for name, ratio in output.losses.items()
    )
    return sum(terms, jnp.zeros(()))


def mean_metrics(outputs: Mapping[str, ObjectiveOutput]) -> dict[str, Float[Array, ""]]:
    """Returns the means of all unweighted losses and all metrics.

    Names from extension objectives are prefixed with "label/". "loss" is the captioning cross-entropy.
    """
    return {
        name if label in (CAPTIONS, CONTRASTIVE) else f"{label}/{name}": ratio.mean()
        for label, output in outputs.items()
        for name, ratio in {**output.losses, **output.metrics}.items()
    }
