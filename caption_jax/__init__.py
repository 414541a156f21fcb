"""Image captioning in JAX. Importing this package is light: each name loads its module when it is first used.

A captioner from the workdir of a training run:

    import caption_jax

    captioner = caption_jax.load("runs/flickr8k")
    for caption in captioner.caption(["a.jpg", "b.png"]):
        print(caption.text, caption.log_prob)
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Caption": "captioner",
    "Captioner": "captioner",
    "Decoder": "models",
    "DecoderLayer": "models",
    "EfficientNet": "models",
    "ImageCaptioningModel": "models",
    "ImageEncoder": "models",
    "TextEncoder": "models",
    "default_config": "config",
    "load": "captioner",
    "score": "evaluation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
