"""The model in linen modules, imported when first used. Nothing here imports another package of ours but `ops`."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_HOMES = {
    "BatchNorm": "batch_norm",
    "ContextMemory": "context_memory",
    "Decoder": "decoder",
    "DecoderLayer": "decoder",
    "EfficientNet": "backbones.efficientnet",
    "ImageCaptioningModel": "captioning_model",
    "ImageEncoder": "image_encoder",
    "ImageFeatures": "image_encoder",
    "Roberta": "roberta",
    "RobertaSizes": "roberta",
    "SharedSpace": "joint_embedding",
    "TextEncoder": "text_encoder",
    "TextFeatures": "text_encoder",
    "VARIANTS": "backbones.efficientnet_variants",
    "build_model": "build",
    "roberta_sizes": "build",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "depthwise_conv":  # its name until version 0.2
        from caption_jax.ops.depthwise import depthwise_conv

        message = "caption_jax.models.depthwise_conv is now caption_jax.ops.depthwise.depthwise_conv"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return depthwise_conv
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
