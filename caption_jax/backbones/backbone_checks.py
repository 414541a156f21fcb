"""Checks that the backbone supports the image size and the batch size, before training starts."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from caption_jax.backbones.protocol import Backbone
from input_pipeline.errors import ConfigError, UserError


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raises ConfigError if the backbone does not support the image size; see `Backbone.check_image_size`."""
    _run_check(getattr(backbone, "check_image_size", None), image_size)


def check_batch(backbone: Backbone, images: int, trained_norms: Set[str]) -> None:
    """Raises ConfigError if the backbone cannot be trained with the batch size; see `Backbone.check_batch`."""
    _run_check(getattr(backbone, "check_batch", None), images, trained_norms)


def _run_check(check: Callable | None, *arguments: Any) -> None:
    """Runs an optional check of a backbone, and converts its ValueError to ConfigError."""
    if check is None:
        return
    try:
        check(*arguments)
    except UserError:
        raise
    except ValueError as error:  # user-defined backbones may raise any ValueError
        raise ConfigError(f"config.model.encoder: {error}") from error
