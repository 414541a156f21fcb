"""The model in linen modules, imported when first used. Nothing here imports another package of ours but `ops`."""

from __future__ import annotations

from caption_jax.lazy_names import lazy_names

_HOMES = {
    "BatchNorm": "batch_norm",
    "ContextMemory": "context_memory",
    "Decoder": "decoder",
    "DecoderLayer": "decoder",
    "EfficientNet": "backbones.efficientnet",
    "ImageCaptioningModel": "captioning_model",
    "ImageEncoder": "image_encoder",
    "ImageFeatures": "image_encoder",
    "SharedSpace": "joint_embedding",
    "TextEncoder": "text_encoder",
    "TextFeatures": "text_encoder",
    "VARIANTS": "backbones.efficientnet_variants",
    "build_model": "build",
    "roberta_sizes": "build",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
