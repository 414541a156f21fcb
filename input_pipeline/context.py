"""Context: captions of similar images, attached to each image of a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.captions import CaptionEncoder, EncodedCaptions
from input_pipeline.inputs import cycle_indices
from input_pipeline.records import DataError, Split
from input_pipeline.special_tokens import PAD

ImageId = str | int


class ContextCaptions:
    """One caption per nearest neighbour of an image, nearest first, as token ids [max_texts, max_length].

    Rows beyond the number of neighbours contain only padding. Captions are taken from the neighbours only, and no image
    is its own neighbour.

    Args:
        neighbours: neighbours by image id: ids of images of `source`, nearest first. May be empty.
        source: the split from which captions are taken.
        max_texts: captions per image.
        vocabulary: encodes captions.
        max_length: tokens per caption.
        dropout: fraction of epochs in which an image has no context; only applies with a seed, see `load`.

    Raises:
        DataError: an image is its own neighbour, or has a neighbour that is not in `source`.
    """

    def __init__(
        self,
        neighbours: Mapping[ImageId, Sequence[ImageId]],
        source: Split,
        max_texts: int,
        vocabulary: CaptionEncoder,
        max_length: int,
        dropout: float = 0.0,
    ):
        indices = {image_id: index for index, image_id in enumerate(source.image_ids)}
        for image_id, neighbour_ids in neighbours.items():
            if image_id in neighbour_ids:
                raise DataError(
                    f"image {image_id} is among its own neighbours, so its captions would leak into its context; "
                    "recompute the neighbours with --mode=neighbours"
                )
            if unknown := [other for other in neighbour_ids if other not in indices]:
                raise DataError(
                    f"image {image_id} has the neighbour {unknown[0]}, which is not in the split {source.name!r} that "
                    f"context is taken from; build an index of that split (--mode=index --split={source.name}), then "
                    "compute the neighbours (--mode=neighbours)"
                )
        self._neighbours = {
            image_id: [indices[other] for other in neighbour_ids if source[indices[other]].captions][:max_texts]
            for image_id, neighbour_ids in neighbours.items()
        }
        self._source, self._dropout = source, dropout
        self._encoded = EncodedCaptions(source, vocabulary, max_length)
        self.shape = (max_texts, max_length)

    @property
    def empty(self) -> Int32[np.ndarray, "max_texts max_length"]:
        """The ids of an image without context: only padding."""
        return np.full(self.shape, PAD, np.int32)

    def load(
        self, image_id: ImageId, seed: int | None = None, epoch: int = 0
    ) -> Int32[np.ndarray, "max_texts max_length"]:
        """Returns the context of an image: the first caption of each neighbour if `seed` is None.

        With a seed, each epoch takes the next caption of each neighbour, in an order specific to the pair of images,
        and drops the context at random. Both are functions of the seed, the epoch and the image ids only.
        """
        ids = self.empty
        if seed is not None and _uniform(f"{seed}/no context/{epoch}/{image_id!r}") < self._dropout:
            return ids
        for row, index in enumerate(self._neighbours[image_id]):
            other, number = self._source[index], 0
            if seed is not None:
                key = f"{seed}/context/{image_id!r}/{other.image_id!r}"
                (number,) = cycle_indices(len(other.captions), 1, key, epoch)
            ids[row] = self._encoded[index, number]
        return ids

    def fingerprint(self) -> str:
        """Hash of the neighbours of each image and of the settings."""
        neighbours = sorted((repr(image_id), indices) for image_id, indices in self._neighbours.items())
        return hashlib.sha256(json.dumps([self.shape, self._dropout, neighbours]).encode()).hexdigest()[:16]


def _uniform(key: str) -> float:
    """A uniform sample from [0, 1), determined by `key`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
