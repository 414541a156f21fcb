"""Loads examples: the pixels or features of images, with captions as token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.captions import CaptionEncoder, EncodedCaptions
from input_pipeline.context import ContextCaptions
from input_pipeline.data_spec import DataSpec
from input_pipeline.image_order import Rows
from input_pipeline.images import ImageError
from input_pipeline.inputs import Inputs, cycle_indices
from input_pipeline.records import Split


@dataclasses.dataclass(frozen=True, slots=True)
class Examples:
    """Consecutive rows of a batch.

    Attributes:
        indices: indices of the images in the split.
        tokens: selected captions of each image.
        inputs: pixels or features [rows, ...], or a list with one array per row; rows of unreadable images are
            undefined.
        context: captions of other images; None if batches have no context.
        problems: errors of unreadable images, by row.
    """

    indices: list[int]
    tokens: Int32[np.ndarray, "rows captions length"]
    inputs: np.ndarray | Sequence[np.ndarray | None]
    context: Int32[np.ndarray, "rows max_texts length"] | None
    problems: dict[int, ImageError]


class ExampleLoader:
    """Loads the examples at positions of the global sequence. Thread-safe.

    Args:
        split: the images and captions.
        inputs: pixels or features of the images in `split`.
        vocabulary: encodes captions.
        spec: `config.data`.
        seed: seed of the choice of captions; None for the first captions of each image.
        context: context captions of the images in `split`, or None.

    Attributes:
        blank: token ids [captions, length] of rows without an image.
    """

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        vocabulary: CaptionEncoder,
        spec: DataSpec,
        seed: int | None,
        context: ContextCaptions | None,
    ):
        self.split = split
        self.inputs = inputs
        self.context = context
        self._seed = seed
        self._captions = EncodedCaptions(split, vocabulary, spec.max_length)
        self._captions_per_image = spec.captions_per_image or max((1, *(len(record.captions) for record in split)))
        empty = np.asarray(vocabulary.encode("", spec.max_length), np.int32)
        self.blank = np.tile(empty, (self._captions_per_image, 1))

    def __call__(self, rows: Rows) -> Examples:
        """Returns the examples of consecutive rows."""
        tokens = np.tile(self.blank, (len(rows.indices), 1, 1))
        for row, (index, epoch) in enumerate(zip(rows.indices, rows.epochs, strict=True)):
            self._select_captions(index, epoch, tokens[row])
        context = None
        if self.context is not None:
            ids = [self.split[index].image_id for index in rows.indices]
            texts = [self.context.load(key, self._seed, epoch) for key, epoch in zip(ids, rows.epochs, strict=True)]
            context = np.stack(texts)
        inputs, problems = self.inputs.load_rows(rows.indices, rows.epochs)
        return Examples(rows.indices, tokens, inputs, context, problems)

    def _select_captions(self, index: int, epoch: int, tokens: Int32[np.ndarray, "captions length"]) -> None:
        """Writes the token ids of the captions of an image for an epoch to `tokens`."""
        record = self.split[index]
        available, choices = len(record.captions), range(self._captions_per_image)
        if not available:
            return
        if self._seed is not None:
            choices = choose_captions(available, len(choices), self._seed, epoch, record.image_id)
        for row, choice in enumerate(choices):
            tokens[row] = self._captions[index, choice % available]


def choose_captions(available: int, count: int, seed: int, epoch: int, image_id: str | int) -> list[int]:
    """Chooses the captions of an image for an epoch, and returns their indices.

    The captions are shuffled by (seed, image id), and each epoch uses the next `count` captions, cyclically. A step
    uses each caption at most once, unless there are fewer than `count`. Over many epochs, all are used equally often.

    Args:
        available: number of captions of the image, at least 1.
        count: number of captions to choose.
        seed: seed of the run.
        epoch: 0-based epoch.
        image_id: id of the image.
    """
    return cycle_indices(available, count, f"{seed}/{image_id!r}", epoch)
