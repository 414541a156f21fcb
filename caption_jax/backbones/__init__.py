"""Image backbones for `config.model.encoder`: dataclasses that load pretrained weights and build the linen modules in
`caption_jax/models/backbones/`.
"""
