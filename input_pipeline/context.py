"""Context: captions of other images, to stand beside an image in a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline.captions import EncodedCaptions, EncodesCaptions
from input_pipeline.inputs import in_turn
from input_pipeline.records import DataError, Split
from input_pipeline.special_tokens import PAD

ImageId = str | int


class ContextCaptions:
    """A caption of each of an image's nearest neighbours, nearest first, as token ids [slots, max_length].

    Slots that are left over, as where an image has few neighbours, hold pads alone. Captions come from the neighbours
    and from nowhere else, and no image is a neighbour of itself.

    Args:
        neighbours: image id -> ids of images of `source`, nearest first. May be empty.
        source: the split that captions are taken from.
        slots: captions beside an image.
        vocabulary: encodes captions.
        max_length: tokens of a caption.
        dropout: share of the epochs in which an image has no context; with a seed only, see `load`.

    Raises:
        DataError: an image is its own neighbour, or has one that `source` lacks.
    """

    def __init__(
        self,
        neighbours: Mapping[ImageId, Sequence[ImageId]],
        source: Split,
        slots: int,
        vocabulary: EncodesCaptions,
        max_length: int,
        dropout: float = 0.0,
    ):
        places = {image_id: place for place, image_id in enumerate(source.image_ids)}
        for image_id, near in neighbours.items():
            if image_id in near:
                raise DataError(
                    f"image {image_id} is among its own neighbours, whose captions would give its own away: find them "
                    "anew with --mode=neighbours"
                )
            if strange := [other for other in near if other not in places]:
                raise DataError(
                    f"image {image_id} has the neighbour {strange[0]}, which is no image of the split {source.name!r} "
                    f"that context is taken from: make an index of that split (--mode=index --split={source.name}), "
                    "then find neighbours in it (--mode=neighbours)"
                )
        self._near = {
            image_id: [places[other] for other in near if source[places[other]].captions][:slots]
            for image_id, near in neighbours.items()
        }
        self._source, self._dropout = source, dropout
        self._encoded = EncodedCaptions(source, vocabulary, max_length)
        self.shape = (slots, max_length)

    @property
    def nothing(self) -> Int32[np.ndarray, "slots max_length"]:
        """What an image without context has."""
        return np.full(self.shape, PAD, np.int32)

    def load(self, image_id: ImageId, seed: int | None = None, epoch: int = 0) -> Int32[np.ndarray, "slots max_length"]:
        """The context of an image; each neighbour's first caption, unless there is a seed.

        With one, each epoch takes the next caption of each neighbour, in an order of the pair's own, and drops the
        context by chance. Both depend on the seed, the epoch and the ids of the images, on nothing else.
        """
        ids = self.nothing
        if seed is not None and _draw(f"{seed}/no context/{epoch}/{image_id!r}") < self._dropout:
            return ids
        for slot, place in enumerate(self._near[image_id]):
            other, number = self._source[place], 0
            if seed is not None:
                key = f"{seed}/context/{image_id!r}/{other.image_id!r}"
                (number,) = in_turn(len(other.captions), 1, key, epoch)
            ids[slot] = self._encoded[place, number]
        return ids

    def fingerprint(self) -> str:
        """A hash of which neighbours stand beside which image, and of how often none do."""
        near = sorted((repr(image_id), places) for image_id, places in self._near.items())
        return hashlib.sha256(json.dumps([self.shape, self._dropout, near]).encode()).hexdigest()[:16]


def _draw(key: str) -> float:
    """A number from 0 to 1, another for each key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
