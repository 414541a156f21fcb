"""Flax linen modules of the captioning model, imported lazily. `ops` is the only other project package they import."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_LAZY_IMPORTS = {
    "BatchNorm": "batch_norm",
    "ContextMemory": "context_memory",
    "Decoder": "decoder",
    "DecoderLayer": "decoder",
    "EfficientNet": "backbones.efficientnet",
    "ImageCaptioningModel": "captioning_model",
    "ImageEncoder": "image_encoder",
    "ImageFeatures": "image_encoder",
    "Roberta": "roberta",
    "RobertaSettings": "roberta",
    "JointEmbedding": "joint_embedding",
    "TextEncoder": "text_encoder",
    "TextFeatures": "text_encoder",
    "VARIANTS": "backbones.efficientnet_variants",
    "build_model": "build",
    "roberta_settings": "build",
}

# Renamed in version 0.2.
_DEPRECATED_NAMES = {"SharedSpace": "JointEmbedding", "roberta_sizes": "roberta_settings"}

__all__ = sorted(_LAZY_IMPORTS)


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED_NAMES:
        warnings.warn(f"caption_jax.models.{name} is now {_DEPRECATED_NAMES[name]}", DeprecationWarning, stacklevel=2)
        name = _DEPRECATED_NAMES[name]
    if name == "depthwise_conv":  # moved in version 0.2
        from caption_jax.ops.depthwise import depthwise_conv

        message = "caption_jax.models.depthwise_conv is now caption_jax.ops.depthwise.depthwise_conv"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return depthwise_conv
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
