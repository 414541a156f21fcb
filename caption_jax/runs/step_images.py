"""Whether the image backbone takes the images of a training step."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from caption_jax.backbones.backbone_checks import check_batch
from caption_jax.errors import ConfigError
from caption_jax.parameters.freezing import trained_norms
from caption_jax.specs import RunSpec

PyTree = Any

_BACKBONE = "image_encoder/backbone/"


def check_step_images(spec: RunSpec, params: PyTree) -> None:
    """Checks the images of a run's training step.

    Args:
        spec: of the run, its steps resolved.
        params: the model's parameters, or their shapes.

    Raises:
        ConfigError: the backbone cannot be trained on so many images, or as `match_rules`.
    """
    norms = trained_norms(params, spec.optimizer.rules, spec.train.steps)
    check_images(spec, spec.data.batch_size, norms)


def check_images(spec: RunSpec, images: int, norms: Set[str]) -> None:
    """Checks the images of a step in which the norms at the paths `norms` are trained.

    Raises:
        ConfigError: they are no whole number of microbatches, or the backbone cannot be trained on one.
    """
    microbatches = spec.optimizer.accumulation
    if images % microbatches:
        raise ConfigError(
            f"{images} images in a step are no multiple of {microbatches} accumulated microbatches "
            "(config.optimizer.accumulation)"
        )
    inside = frozenset(path.removeprefix(_BACKBONE) for path in norms if path.startswith(_BACKBONE))
    check_batch(spec.model.encoder, images // microbatches, inside)
