"""The captioning model as Flax linen modules, imported lazily. Depends on no other package of the project but `ops`."""

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
    "RobertaSizes": "roberta",
    "JointEmbedding": "joint_embedding",
    "TextEncoder": "text_encoder",
    "TextFeatures": "text_encoder",
    "VARIANTS": "backbones.efficientnet_variants",
    "build_model": "build",
    "roberta_sizes": "build",
}

__all__ = sorted(_LAZY_IMPORTS)


def __getattr__(name: str) -> Any:
    if name == "SharedSpace":  # its name until version 0.2
        warnings.warn("caption_jax.models.SharedSpace is now JointEmbedding", DeprecationWarning, stacklevel=2)
        name = "JointEmbedding"
    if name == "depthwise_conv":  # its location until version 0.2
        from caption_jax.ops.depthwise import depthwise_conv

        message = "caption_jax.models.depthwise_conv is now caption_jax.ops.depthwise.depthwise_conv"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return depthwise_conv
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
