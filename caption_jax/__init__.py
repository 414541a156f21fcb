"""Image captioning in JAX. Public names are imported lazily, so that importing this package is fast.

To caption images with a trained model:

    import caption_jax

    captioner = caption_jax.load("runs/flickr8k")
    for caption in captioner.caption(["a.jpg", "b.png"]):
        print(caption.text, caption.log_prob)
"""

from __future__ import annotations

from caption_jax import config_files, moved_modules
from caption_jax.lazy_names import lazy_names

__version__ = "0.1.0"  # read by pyproject.toml

_MODULES = {
    "Caption": "inference.captioner",
    "Captioner": "inference.captioner",
    "Decoder": "models",
    "DecoderLayer": "models",
    "EfficientNet": "models",
    "ImageCaptioningModel": "models",
    "ImageEncoder": "models",
    "ImageError": "inference.captioner",
    "TextEncoder": "models",
    "default_config": "config",
    "load": "inference.captioner",
    "score": "metrics",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

config_files.make_importable()
moved_modules.make_importable()
