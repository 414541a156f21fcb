"""Loaders of pretrained weights, independent of the libraries that wrote them. Submodules are imported lazily."""

from __future__ import annotations

from caption_jax.errors import WeightsError as WeightsError
from caption_jax.lazy_names import lazy_names

_MODULES = {
    "EncoderSettings": "efficientnet_weights",
    "PretrainedEncoder": "efficientnet_weights",
    "encoder_settings": "efficientnet_weights",
    "load_encoder_weights": "efficientnet_weights",
}

__all__ = sorted([*_MODULES, "WeightsError"])
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
