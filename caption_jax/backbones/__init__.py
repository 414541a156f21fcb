"""Image encoders as a config names them: `config.model.encoder` is one of these dataclasses, which reads its weights
and builds its network. The networks, called backbones, are the linen modules in `caption_jax/models/backbones/`.
"""
