"""What makes one ViT another: sizes, and settings that weights bring along. Imports no Flax."""

from __future__ import annotations

import dataclasses
from typing import Literal

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make one ViT (table 1 of the paper). The hidden layer of a feed-forward is 4 x `width`.

    Attributes:
        width: of a token.
        blocks: number of blocks.
        heads: of each attention; divides `width`.
        patch: side of a patch, pixels.
    """

    width: int
    blocks: int
    heads: int
    patch: int

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The network's parts in order, named as in the paths of their parameters."""
        return ("embed", *(f"block_{index}" for index in range(self.blocks)), "norm")


SIZES = {
    "s16": Size(384, 12, 6, 16),
    "b16": Size(768, 12, 12, 16),
    # Not from the paper: for tests.
    "micro": Size(32, 2, 2, 8),
}


@dataclasses.dataclass(frozen=True)
class ViTSettings:
    """What a network must share with the one that its weights were trained in; the defaults are the paper's.

    Attributes:
        class_token: whether a learned token precedes those of the patches. The features leave it out.
        gelu: activation of the feed-forwards: 'exact', or 'tanh' for its approximation.
        norm_epsilon: epsilon of the layer norms.
        mean: of the red, green and blue channel, in 0..255.
        std: likewise; the network's input is (pixel - mean) / std.
        source: where this comes from, for the log.
    """

    class_token: bool = True
    gelu: Literal["exact", "tanh"] = "exact"
    norm_epsilon: float = 1e-6
    mean: Triple = (127.5, 127.5, 127.5)
    std: Triple = (127.5, 127.5, 127.5)
    source: str = "random weights"
