"""The model in linen modules, imported when first used. Nothing here imports another package of ours."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BatchNorm": "batch_norm",
    "ContextMemory": "context",
    "Decoder": "decoder",
    "DecoderLayer": "decoder",
    "EfficientNet": "efficientnet",
    "ImageCaptioningModel": "captioning",
    "ImageEncoder": "image_encoder",
    "ImageFeatures": "image_encoder",
    "SharedSpace": "shared_space",
    "TextEncoder": "text_encoder",
    "TextFeatures": "text_encoder",
    "VARIANTS": "efficientnet",
    "build_model": "build",
    "depthwise_conv": "depthwise",
    "roberta_sizes": "build",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
