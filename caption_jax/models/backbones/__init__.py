"""Backbones, the networks of image encoders: linen modules from pixels to a grid of features. The dataclasses that a
config names, and that build them, are in `caption_jax/backbones/`.
"""
