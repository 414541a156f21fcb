"""What a backbone says of the images that a run has for it, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from caption_jax.backbones.protocol import Backbone
from input_pipeline.errors import ConfigError, UserError


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raises ConfigError where a backbone does not take images of that size; see `Backbone.check_image_size`."""
    _ask(getattr(backbone, "check_image_size", None), image_size)


def check_batch(backbone: Backbone, images: int, trained_norms: Set[str]) -> None:
    """Raises ConfigError where a backbone cannot be trained on that many images at once; see `Backbone.check_batch`."""
    _ask(getattr(backbone, "check_batch", None), images, trained_norms)


def _ask(check: Callable | None, *arguments: Any) -> None:
    """Calls a check, if the backbone has one."""
    if check is None:
        return
    try:
        check(*arguments)
    except UserError:
        raise
    except ValueError as error:  # as in `build_spec`: a backbone need not know our kinds of error
        raise ConfigError(f"config.model.encoder: {error}") from error
