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

    Rows beyond the number of neighbours contain only padding. An image cannot be a neighbour of itself, so its context
    never contains its reference captions.

    Args:
        neighbours: for each image id, the ids of its neighbours in `source`, nearest first; may be empty.
        source: the split that contains the neighbours and their captions.
        max_texts: captions per image.
        vocabulary: encodes captions.
        max_length: tokens per caption.
        dropout: fraction of epochs in which an image has no context; ignored without a seed, see `load`.

    Raises:
        DataError: an image is among its own neighbours, or has a neighbour that is not in `source`.
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
            if unknown := [neighbour_id for neighbour_id in neighbour_ids if neighbour_id not in indices]:
                raise DataError(
                    f"image {image_id} has the neighbour {unknown[0]}, which is not in the split {source.name!r} that "
                    f"context is taken from; build an index of that split (--mode=index --split={source.name}), then "
                    "compute the neighbours (--mode=neighbours)"
                )
        self._neighbours = {
            image_id: [index for index in map(indices.get, neighbour_ids) if source[index].captions][:max_texts]
            for image_id, neighbour_ids in neighbours.items()
        }
        self._source, self._dropout = source, dropout
        self._encoded = EncodedCaptions(source, vocabulary, max_length)
        self.shape = (max_texts, max_length)

    @property
    def empty(self) -> Int32[np.ndarray, "max_texts max_length"]:
        """Token ids of an image without context, which are all padding."""
        return np.full(self.shape, PAD, np.int32)

    def load(
        self, image_id: ImageId, seed: int | None = None, epoch: int = 0
    ) -> Int32[np.ndarray, "max_texts max_length"]:
        """Returns the context of an image.

        Without a seed, the context contains the first caption of each neighbour. With a seed, each epoch uses the next
        caption of each neighbour, in an order specific to the pair of images, and drops the context of some images at
        random. These choices depend only on the seed, the epoch and the image ids.
        """
        ids = self.empty
        if seed is not None and _sample_uniform(f"{seed}/no context/{epoch}/{image_id!r}") < self._dropout:
            return ids
        for row, index in enumerate(self._neighbours[image_id]):
            neighbour, caption_index = self._source[index], 0
            if seed is not None:
                key = f"{seed}/context/{image_id!r}/{neighbour.image_id!r}"
                (caption_index,) = cycle_indices(len(neighbour.captions), 1, key, epoch)
            ids[row] = self._encoded[index, caption_index]
        return ids

    def fingerprint(self) -> str:
        """Returns a hash of the neighbours and the settings."""
        neighbours = sorted((repr(image_id), indices) for image_id, indices in self._neighbours.items())
        return hashlib.sha256(json.dumps([self.shape, self._dropout, neighbours]).encode()).hexdigest()[:16]


def _sample_uniform(key: str) -> float:
    """Returns a uniform sample from [0, 1) that is determined by `key`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
