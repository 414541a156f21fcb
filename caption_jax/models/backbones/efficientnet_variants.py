"""Variants of EfficientNet (Tan and Le, 2019), defined by block tables that are scaled in width and depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Triple = tuple[float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Stage:
    """A sequence of inverted residual blocks, as in table 1 of the paper, before scaling."""

    expand: int
    channels: int
    blocks: int
    stride: int
    kernel: int


PAPER_STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)

# For images of 64 to 96 pixels, with a total stride of 8; not in the paper.
TINY_STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(3, 24, 1, 2, 3),
    Stage(3, 40, 1, 2, 5),
    Stage(3, 64, 1, 1, 3),
)

# For tests; not in the paper. A small network with all kinds of blocks: with and without expansion, with and without a
# residual connection, and with both strides and kernel sizes.
MICRO_STAGES = (Stage(1, 8, 1, 1, 3), Stage(2, 8, 2, 2, 3), Stage(2, 16, 2, 2, 5))


@dataclass(frozen=True)
class Variant:
    """Hyperparameters of an EfficientNet.

    Attributes:
        width: multiplier of the number of channels.
        depth: multiplier of the number of blocks per stage.
        resolution: image size that the variant was designed for, in pixels.
        squeeze_excite: whether blocks have squeeze-and-excitation, as in B variants but not in Lite variants.
        activation: 'swish' or 'relu6'.
        fix_stem_head: whether to leave the stem, the head and the depth of the first and last stage unscaled, as in
            Lite variants.
        stages: block table before scaling.
        stem: number of channels of the stem before scaling.
        head: number of channels of the head before scaling.
    """

    width: float
    depth: float
    resolution: int
    squeeze_excite: bool = True
    activation: str = "swish"
    fix_stem_head: bool = False
    stages: tuple[Stage, ...] = PAPER_STAGES
    stem: int = 32
    head: int = 1280

    @property
    def stem_channels(self) -> int:
        """Number of channels after the stem."""
        return self.stem if self.fix_stem_head else _scale_channels(self.stem, self.width)

    @property
    def head_channels(self) -> int:
        """Number of channels of the features."""
        return self.head if self.fix_stem_head else _scale_channels(self.head, self.width)

    @cached_property
    def scaled_stages(self) -> tuple[Stage, ...]:
        """Block table with the channel and block counts of this variant."""
        scaled = []
        for index, stage in enumerate(self.stages):
            is_first_or_last = index in (0, len(self.stages) - 1)
            is_fixed = self.fix_stem_head and is_first_or_last
            blocks = stage.blocks if is_fixed else math.ceil(stage.blocks * self.depth)
            channels = _scale_channels(stage.channels, self.width)
            scaled.append(Stage(stage.expand, channels, blocks, stage.stride, stage.kernel))
        return tuple(scaled)

    @property
    def stride(self) -> int:
        """Total stride, the size of a feature cell in pixels."""
        return 2 * math.prod(stage.stride for stage in self.stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the network's stages in order, as in the parameter paths."""
        return ("stem", *(f"stage_{number}" for number in range(1, len(self.stages) + 1)), "head")

    def stages_up_to(self, name: str) -> tuple[str, ...]:
        """Returns the stages up to and including `name`, or none if it is "". Raises ValueError if it is unknown."""
        if name and name not in self.stage_names:
            raise ValueError(f"unknown stage {name!r}; expected one of {', '.join(self.stage_names)}")
        return self.stage_names[: self.stage_names.index(name) + 1] if name else ()


@dataclass(frozen=True)
class EfficientNetSettings:
    """Settings that must match those the weights were trained with. The defaults are for random weights.

    Attributes:
        padding: 'same' (as in TensorFlow) or 'symmetric' (as in PyTorch).
        norm_epsilon: epsilon of the batch norms.
        mean: mean of the red, green and blue channels, in [0, 255].
        std: standard deviation of the channels. The input of the network is (pixel - mean) / std.
        source: origin of the settings, for logging.
    """

    padding: Literal["same", "symmetric"] = "same"
    norm_epsilon: float = 1e-3
    mean: Triple = tuple(255 * value for value in IMAGENET_MEAN)
    std: Triple = tuple(255 * value for value in IMAGENET_STD)
    source: str = "random weights"

    def __post_init__(self):
        if self.padding not in ("same", "symmetric") or not self.norm_epsilon > 0:
            raise ValueError(
                f"padding={self.padding!r} and norm_epsilon={self.norm_epsilon!r}; they must be 'same' or 'symmetric', "
                "and a positive number"
            )


def _make_lite_variant(width: float, depth: float, resolution: int) -> Variant:
    return Variant(width, depth, resolution, squeeze_excite=False, activation="relu6", fix_stem_head=True)


VARIANTS: dict[str, Variant] = {
    "b0": Variant(1.0, 1.0, 224),
    "b1": Variant(1.0, 1.1, 240),
    "b2": Variant(1.1, 1.2, 260),
    "b3": Variant(1.2, 1.4, 300),
    "b4": Variant(1.4, 1.8, 380),
    "b5": Variant(1.6, 2.2, 456),
    "b6": Variant(1.8, 2.6, 528),
    "b7": Variant(2.0, 3.1, 600),
    "lite0": _make_lite_variant(1.0, 1.0, 224),
    "lite1": _make_lite_variant(1.0, 1.1, 240),
    "lite2": _make_lite_variant(1.1, 1.2, 260),
    "lite3": _make_lite_variant(1.2, 1.4, 280),
    "lite4": _make_lite_variant(1.4, 1.8, 300),
    # Not in the paper; see `TINY_STAGES` and `MICRO_STAGES`.
    "tiny": Variant(1.0, 1.0, 64, stages=TINY_STAGES, stem=16, head=128),
    "micro": Variant(1.0, 1.0, 32, stages=MICRO_STAGES, stem=8, head=16),
}


def get_variant(name: str) -> Variant:
    """Returns the variant `name`. Raises ValueError if it is unknown."""
    if name not in VARIANTS:
        raise ValueError(f"there is no EfficientNet variant {name!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _scale_channels(channels: int, width: float) -> int:
    """Scales and rounds to the nearest multiple of 8, but never down by more than 10%, as in the paper."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
