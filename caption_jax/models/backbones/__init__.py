"""Image backbones: linen modules that map pixels to a feature grid.

The config dataclasses that build them are in `caption_jax/backbones/`.
"""
