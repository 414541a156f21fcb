"""Pixels of a prepared dataset, which are read into batches without decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from input_pipeline.images import ImageError
from input_pipeline.inputs import Inputs
from input_pipeline.prepared.shards import RAW, PreparedImage
from input_pipeline.records import Split


class PreparedPixels(Inputs):
    """Raw pixels of all images of a split, which equal those that `Pixels` decodes. Thread-safe.

    Args:
        split: the images, for which `has_pixels` is true.
        size: side of the squares, in pixels.
    """

    name = "image"
    dtype = np.dtype(np.uint8)

    def __init__(self, split: Split, size: int):
        self.shape = (size, size, 3)
        self._split = split

    def load(self, index: int, epoch: int = 0) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels of an image. Raises ImageError."""
        record = self._split[index]
        try:
            return record.image.read_pixels()
        except OSError as error:
            raise ImageError(record.name, str(error)) from None

    def rows_per_read(self, batch_size: int) -> int:
        """Returns the whole batch, into which the pixels are copied once."""
        return batch_size

    def load_rows(
        self, indices: Sequence[int], epochs: Sequence[int]
    ) -> tuple[UInt8[np.ndarray, "rows size size 3"], dict[int, ImageError]]:
        """Reads the rows of several images; see `Inputs.load_rows`."""
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        problems: dict[int, ImageError] = {}
        for row, index in enumerate(indices):
            try:
                pixels[row] = self.load(index)
            except ImageError as error:
                problems[row] = error
        return pixels, problems


def has_pixels(split: Split, size: int) -> bool:
    """Whether all images of a split are stored as raw pixels of this size."""
    return len(split) > 0 and all(
        isinstance(image, PreparedImage) and (image.image_format, image.size) == (RAW, size)
        for image in (record.image for record in split)
    )
