"""Image backbones for `config.model.encoder`.

These dataclasses load pretrained weights and build the linen modules in `caption_jax/models/backbones/`.
"""
