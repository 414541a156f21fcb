"""ViT (Dosovitskiy et al., 2020) as a run's image backbone. Imports no Flax until it builds.

A config names it in place of EfficientNet, with the fields of `ViT` as keys:

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
    from caption_jax.ops.forms import Ops
    from caption_jax.pretrained.vit_weights import PretrainedViT


@dataclasses.dataclass(frozen=True)
class ViT:
    """A ViT as the image backbone of a run: the keys of `config.model.encoder`.

    `weights` is "" (random), a local .safetensors, .bin or .pth file, a folder that transformers or timm saved, or a
    name on the Hugging Face hub, with the tensor names of timm's ViT, transformers' ViT or transformers' SigLIP.

    Raises:
        ConfigError: an unknown size, or a rate outside [0, 1).
    """

    settings_class: ClassVar[type] = ViTSettings

    size: str = "s16"  # "s16" or "b16": ViT-S or ViT-B with patches of 16 x 16 pixels
    weights: str = ""
    drop_path: float = 0.0  # stochastic depth at the last block

    def __post_init__(self):
        if self.size not in SIZES:
            raise ConfigError(f"config.model.encoder.size is {self.size!r}; choose one of {', '.join(SIZES)}")
        check_fields(self, "config.model.encoder", drop_path=interval("[0, 1)", "0 for none"))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The network's parts in order, named as in the paths of their parameters."""
        return SIZES[self.size].stage_names

    @property
    def stride(self) -> int:
        """Pixels of the image's side per cell of the features."""
        return SIZES[self.size].patch

    @property
    def batch_multiple(self) -> int:
        """Images do not depend on each other."""
        return 1

    def check_image_size(self, image_size: int) -> None:
        """Raises ConfigError where images cannot be cut into whole patches."""
        if image_size % self.stride:
            nearest = max(round(image_size / self.stride), 1) * self.stride
            raise ConfigError(
                f"config.data.image_size is {image_size}; it has to be a multiple of the {self.stride} pixels of a "
                f"patch of config.model.encoder's ViT, such as {nearest}"
            )

    def settings(self) -> ViTSettings:
        """Settings that come with the weights, without reading the weights themselves. Raises WeightsError."""
        if not self.weights:
            return ViTSettings()
        from caption_jax.pretrained.vit_weights import vit_settings

        return vit_settings(self.weights, self.size)

    def load(self, image_size: int) -> PretrainedViT:
        """The weights, their position embeddings resized to images of that many pixels a side. Raises WeightsError."""
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
        """The linen module. A block whose layer norms are all in `frozen_norms` is never skipped by `drop_path`.

        Its operations have one form, whatever `ops` is.
        """
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

    def fits(self, other: Any) -> bool:
        """Whether `other` is a ViT of the same size."""
        return isinstance(other, ViT) and other.size == self.size

    def network_key(self, settings: ViTSettings) -> dict[str, Any]:
        """Size, class token, GELU and epsilon."""
        return {"size": self.size, **stored_settings(settings)}
