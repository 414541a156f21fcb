"""Two-fold cross-tuning: settings are selected on one half of the images and evaluated on the other half."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np


def seeded_halves(image_ids: Iterable[Hashable], seed: int = 0) -> tuple[list[Hashable], list[Hashable]]:
    """Splits images into two halves by a hash of the seed and the id, independent of the order of the images."""
    image_ids = list(image_ids)
    ordered = sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed}/{image_id}".encode()).digest())
    first = set(ordered[: len(ordered) // 2])
    return [i for i in image_ids if i in first], [i for i in image_ids if i not in first]


def cross_tuned(
    captions: Sequence[Mapping[Hashable, str]],
    halves: tuple[Sequence[Hashable], Sequence[Hashable]],
    scores: tuple[Sequence[float], Sequence[float]],
) -> tuple[dict[Hashable, str], tuple[int, int]]:
    """Captions of each half, generated with the setting that scores best on the other half (the first one in a tie).

    Args:
        captions: image id -> caption, for each setting.
        halves: image ids of the two halves.
        scores: score of each setting on each half.

    Returns:
        The captions, in the order of `captions[0]`, and the index of the setting used for each half.
    """
    chosen = int(np.argmax(scores[1])), int(np.argmax(scores[0]))
    mixed = {i: captions[setting][i] for half, setting in zip(halves, chosen, strict=True) for i in half}
    return {i: mixed[i] for i in captions[0]}, chosen
