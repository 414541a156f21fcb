"""`config.augment`: random crops, mirroring and colour jitter."""

from __future__ import annotations

import dataclasses

from input_pipeline.spec_checks import at_least, check_fields, interval


@dataclasses.dataclass(frozen=True)
class AugmentSpec:
    """What happens to the pixels of a training image."""

    flip: bool = False  # mirror half of the images
    min_crop_scale: float = 1.0  # smallest area of a random crop, as a fraction of the image; 1 for none
    max_aspect: float = 1.0  # largest aspect ratio of that crop
    brightness: float = 0.0  # colour jitter: largest relative change
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        check_fields(
            self,
            "config.augment",
            min_crop_scale=interval("(0, 1]", "1 for no crop"),
            max_aspect=at_least(1, "aspect kept"),
            brightness=interval("[0, 1]", "0 for none"),
            contrast=interval("[0, 1]", "0 for none"),
            saturation=interval("[0, 1]", "0 for none"),
        )

    @property
    def jitters(self) -> bool:
        """Whether colours change."""
        return bool(self.brightness or self.contrast or self.saturation)

    @property
    def crops(self) -> bool:
        """Whether windows are cut out."""
        return self.min_crop_scale < 1 or self.max_aspect > 1

    @property
    def is_identity(self) -> bool:
        """Whether images stay as they are."""
        return not (self.flip or self.jitters or self.crops)
