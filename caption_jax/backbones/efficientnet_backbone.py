"""EfficientNet (Tan and Le, 2019), the default image backbone. Imports Flax only in `load` and `build`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar

from caption_jax.models.backbones.efficientnet_variants import EfficientNetSettings, get_variant
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, interval, one_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from caption_jax.models.backbones.efficientnet import EfficientNet
    from caption_jax.ops.implementations import Ops
    from caption_jax.pretrained.efficientnet_weights import PretrainedEncoder


@dataclasses.dataclass(frozen=True)
class EfficientNetBackbone:
    """EfficientNet B0-B7 or Lite0-4, optionally pretrained. The fields are the keys of `config.model.encoder`.

    Raises:
        ValueError: the variant is unknown, or a value is out of range.
    """

    settings_class: ClassVar[type] = EfficientNetSettings

    variant: str = "b0"  # "b0".."b7", "lite0".."lite4" (caption_jax/models/backbones/efficientnet_variants.py)
    weights: str = ""  # "" (random), "lite0-wheel", a local file or folder, or a hub name (docs/weights.md)
    norm_group_size: int = 0  # number of images that share batch-norm statistics; 0 for the whole batch
    norm_momentum: float = 0.99
    drop_path: float = 0.0  # stochastic depth rate of the last block
    fine_stage: str = ""  # stage whose features, at a higher resolution, are appended to those of the last; "" for none

    def __post_init__(self):
        stages = get_variant(self.variant).stage_names[:-1]
        check_fields(
            self,
            "config.model.encoder",
            norm_group_size=at_least(0, "for the whole batch"),
            norm_momentum=interval("[0, 1]"),
            drop_path=interval("[0, 1)", "0 for none"),
            fine_stage=one_of("", *stages),
        )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order, as in the parameter paths."""
        return get_variant(self.variant).stage_names

    @property
    def batch_multiple(self) -> int:
        """Batch norm group size, which must divide the training batch size."""
        return self.norm_group_size or 1

    def check_batch(self, images: int, trained_norms: Set[str]) -> None:
        """Raises ConfigError if the batch norm group size does not divide the batch size."""
        if self.norm_group_size and trained_norms and images % self.norm_group_size:
            raise ConfigError(
                f"config.model.encoder.norm_group_size={self.norm_group_size} does not divide the {images} images of a "
                f"training step: set it to a divisor of {images} such as {math.gcd(self.norm_group_size, images)}, or "
                "to 0 for statistics over the whole batch"
            )

    def settings(self) -> EfficientNetSettings:
        """Returns the settings of `weights`, without reading the arrays. Raises WeightsError."""
        if not self.weights:
            return EfficientNetSettings()
        from caption_jax.pretrained.efficientnet_weights import encoder_settings

        return encoder_settings(self.weights, self.variant)

    def load(self, image_size: int) -> PretrainedEncoder:
        """Loads the weights, which do not depend on the image size. Raises WeightsError."""
        from caption_jax.pretrained.efficientnet_weights import load_encoder_weights

        return load_encoder_weights(self.weights, self.variant)

    def build(
        self, settings: EfficientNetSettings, *, frozen_norms: Set[str], dtype: DTypeLike, ops: Ops
    ) -> EfficientNet:
        """Builds the linen module; batch norms in `frozen_norms` use their stored statistics in training."""
        from caption_jax.models.backbones.efficientnet import EfficientNet

        return EfficientNet(
            variant=self.variant,
            norm_group_size=self.norm_group_size,
            norm_momentum=self.norm_momentum,
            drop_path=self.drop_path,
            frozen_norms=frozen_norms,
            padding=settings.padding,
            norm_epsilon=settings.norm_epsilon,
            fine_stage=self.fine_stage,
            dtype=dtype,
            ops=ops,
        )

    def accepts_weights_of(self, other: Any) -> bool:
        """Whether `other` is the same variant."""
        return isinstance(other, EfficientNetBackbone) and other.variant == self.variant

    def network_key(self, settings: EfficientNetSettings) -> dict[str, Any]:
        """Returns the variant, padding and epsilon."""
        return {"variant": self.variant, "padding": settings.padding, "norm_epsilon": settings.norm_epsilon}
