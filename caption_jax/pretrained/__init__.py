"""Weights trained elsewhere, read into our modules without the libraries that wrote them; imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EncoderSettings": "encoder",
    "PretrainedEncoder": "encoder",
    "WeightsError": "errors",
    "encoder_settings": "encoder",
    "load_encoder_weights": "encoder",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
