"""Validation of the number of images per training step."""

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
    """Checks the number of images per training step of a run.

    Args:
        spec: spec of the run, with resolved steps.
        params: model parameters, or their shapes.

    Raises:
        ConfigError: the backbone cannot be trained with this number of images; see also `match_rules`.
    """
    norms = trained_norms(params, spec.optimizer.rules, spec.train.steps)
    check_images(spec, spec.data.batch_size, norms)


def check_images(spec: RunSpec, images: int, norms: Set[str]) -> None:
    """Checks the number of images per training step.

    Args:
        spec: spec of the run.
        images: number of images per step.
        norms: paths of the batch norms that are trained in the step.

    Raises:
        ConfigError: `images` is not a multiple of the number of microbatches, or the backbone cannot be trained on a
            microbatch of this size.
    """
    microbatches = spec.optimizer.grad_accum_steps
    if images % microbatches:
        raise ConfigError(
            f"{images} images per step must be a multiple of config.optimizer.grad_accum_steps={microbatches}"
        )
    backbone_norms = frozenset(path.removeprefix(_BACKBONE) for path in norms if path.startswith(_BACKBONE))
    check_batch(spec.model.encoder, images // microbatches, backbone_norms)
