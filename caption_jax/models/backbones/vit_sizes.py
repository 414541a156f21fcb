"""Model sizes of ViT, and settings that depend on the weights. Does not import Flax."""

from __future__ import annotations

import dataclasses
from typing import Literal

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a ViT (table 1 of the paper). The hidden width of its feed-forward networks is 4 times `width`.

    Attributes:
        width: feature size of a token.
        blocks: number of blocks.
        heads: attention heads per block; must divide `width`.
        patch: patch size in pixels.
    """

    width: int
    blocks: int
    heads: int
    patch: int

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the network's stages in order, as in the parameter paths."""
        return ("embed", *(f"block_{index}" for index in range(self.blocks)), "norm")


SIZES = {
    "s16": Size(384, 12, 6, 16),
    "b16": Size(768, 12, 12, 16),
    # For tests; not in the paper.
    "micro": Size(32, 2, 2, 8),
}


@dataclasses.dataclass(frozen=True)
class ViTSettings:
    """Settings that must match those the weights were trained with. The defaults are those of the paper.

    Attributes:
        class_token: whether a learned token precedes the patches. It is not part of the features.
        gelu: variant of GELU in the feed-forward networks, 'exact' or 'tanh' (approximation).
        norm_epsilon: epsilon of the layer norms.
        mean: mean of the red, green and blue channels, in [0, 255].
        std: standard deviation of the channels. The input of the network is (pixel - mean) / std.
        source: origin of the settings, for logging.
    """

    class_token: bool = True
    gelu: Literal["exact", "tanh"] = "exact"
    norm_epsilon: float = 1e-6
    mean: Triple = (127.5, 127.5, 127.5)
    std: Triple = (127.5, 127.5, 127.5)
    source: str = "random weights"
