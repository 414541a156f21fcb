"""ViT (Dosovitskiy et al., 2020) image backbone. Imports Flax only in `build`.

It is selected in the config by its import path, with the fields of `ViT` as keys:

    config.model.encoder = {
        "name": "caption_jax.backbones.vit_backbone:ViT",
        "size": "b16",
        "weights": "google/siglip-base-patch16-224",
    }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar

from caption_jax.backbones.protocol import stored_settings
from caption_jax.models.backbones.vit_sizes import SIZES, ViTSettings
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import check_fields, interval

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from caption_jax.models.backbones.vit import VisionTransformer
    from caption_jax.ops.implementations import Ops
    from caption_jax.pretrained.vit_weights import PretrainedViT


@dataclasses.dataclass(frozen=True)
class ViT:
    """ViT image backbone. The fields are the keys of `config.model.encoder`.

    `weights` is "" (random), a local .safetensors, .bin or .pth file, a folder saved by transformers or timm, or
    the name of a Hugging Face Hub model. The tensors must be named as in timm's ViT, or as in the ViT or SigLIP of
    transformers.

    Raises:
        ConfigError: the size is unknown, or `drop_path` is outside [0, 1).
    """

    settings_class: ClassVar[type] = ViTSettings

    size: str = "s16"  # "s16" or "b16": ViT-S/16 or ViT-B/16
    weights: str = ""
    drop_path: float = 0.0  # stochastic depth rate of the last block

    def __post_init__(self):
        if self.size not in SIZES:
            raise ConfigError(f"config.model.encoder.size is {self.size!r}; expected one of {', '.join(SIZES)}")
        check_fields(self, "config.model.encoder", drop_path=interval("[0, 1)", "0 for none"))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order, as in the parameter paths."""
        return SIZES[self.size].stage_names

    @property
    def stride(self) -> int:
        """Patch size in pixels."""
        return SIZES[self.size].patch

    @property
    def batch_multiple(self) -> int:
        """1, because layer norm does not share statistics between images."""
        return 1

    def check_image_size(self, image_size: int) -> None:
        """Raises ConfigError if the image size is not a multiple of the patch size."""
        if image_size % self.stride:
            nearest = max(round(image_size / self.stride), 1) * self.stride
            raise ConfigError(
                f"config.data.image_size is {image_size}; it must be a multiple of the patch size "
                f"{self.stride} of the ViT in config.model.encoder, such as {nearest}"
            )

    def settings(self) -> ViTSettings:
        """Returns the settings of the weights, without reading the arrays. Raises WeightsError."""
        if not self.weights:
            return ViTSettings()
        from caption_jax.pretrained.vit_weights import vit_settings

        return vit_settings(self.weights, self.size)

    def load(self, image_size: int) -> PretrainedViT:
        """Loads the weights, with position embeddings resized to the image size. Raises WeightsError."""
        from caption_jax.pretrained.vit_weights import load_vit_weights

        return load_vit_weights(self.weights, self.size, image_size)

    def build(
        self,
        settings: ViTSettings,
        *,
        frozen_norms: Set[str] = frozenset(),
        dtype: DTypeLike = "float32",
        ops: Ops | None = None,
    ) -> VisionTransformer:
        """Builds the linen module. Blocks whose norms are all in `frozen_norms` are never dropped. `ops` is ignored."""
        from caption_jax.models.backbones.vit import VisionTransformer

        return VisionTransformer(
            size=self.size,
            class_token=settings.class_token,
            gelu=settings.gelu,
            norm_epsilon=settings.norm_epsilon,
            drop_path=self.drop_path,
            frozen_norms=frozen_norms,
            dtype=dtype,
        )

    def accepts_weights_of(self, other: Any) -> bool:
        """Returns whether `other` is a ViT of the same size."""
        return isinstance(other, ViT) and other.size == self.size

    def network_key(self, settings: ViTSettings) -> dict[str, Any]:
        """Returns the size, class token, GELU and epsilon."""
        return {"size": self.size, **stored_settings(settings)}
