"""`config.augment`: random crops, horizontal flips and colour jitter."""

from __future__ import annotations

import dataclasses

from input_pipeline.spec_checks import at_least, check_fields, interval


@dataclasses.dataclass(frozen=True)
class AugmentSpec:
    """Augmentation of training images."""

    flip: bool = False  # flip horizontally with probability 0.5
    min_crop_scale: float = 1.0  # minimum area of a random crop, as a fraction of the image; 1 for no crop
    max_aspect: float = 1.0  # maximum aspect ratio of the crop
    brightness: float = 0.0  # colour jitter: maximum relative change
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        check_fields(
            self,
            "config.augment",
            min_crop_scale=interval("(0, 1]", "1 for no crop"),
            max_aspect=at_least(1, "for the original aspect ratio"),
            brightness=interval("[0, 1]", "0 for none"),
            contrast=interval("[0, 1]", "0 for none"),
            saturation=interval("[0, 1]", "0 for none"),
        )

    @property
    def has_jitter(self) -> bool:
        """Whether colours are jittered."""
        return bool(self.brightness or self.contrast or self.saturation)

    @property
    def has_crops(self) -> bool:
        """Whether images are randomly cropped."""
        return self.min_crop_scale < 1 or self.max_aspect > 1

    @property
    def is_identity(self) -> bool:
        """Whether augmentation leaves images unchanged."""
        return not (self.flip or self.has_jitter or self.has_crops)
