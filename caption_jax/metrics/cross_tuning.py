"""Two-fold cross-tuning: settings are selected on one half of the images and evaluated on the other half."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from caption_jax.metrics.argument_checks import check_hypotheses


def split_by_hash(image_ids: Iterable[Hashable], seed: int = 0) -> tuple[list[Hashable], list[Hashable]]:
    """Splits images into two halves by a hash of the seed and the id, independent of the order of the images.

    Raises:
        TypeError: `image_ids` is a single string.
    """
    if isinstance(image_ids, str | bytes):
        raise TypeError(f"image_ids must be a collection of image ids, such as [1, 2], not {image_ids!r}")
    image_ids = list(image_ids)
    by_hash = sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed}/{image_id}".encode()).digest())
    first_half = set(by_hash[: len(by_hash) // 2])
    return [i for i in image_ids if i in first_half], [i for i in image_ids if i not in first_half]


def cross_tune(
    captions: Sequence[Mapping[Hashable, str]],
    halves: tuple[Sequence[Hashable], Sequence[Hashable]],
    scores: tuple[Sequence[float], Sequence[float]],
) -> tuple[dict[Hashable, str], tuple[int, int]]:
    """Combines the captions of both halves, each generated with the setting that scores best on the other half.

    Ties are broken in favour of the first setting.

    Args:
        captions: image id -> caption, for each setting.
        halves: image ids of the two halves.
        scores: score of each setting on each half.

    Returns:
        The combined captions, in the order of `captions[0]`, and the index of the setting used for each half.

    Raises:
        TypeError: the captions of a setting are not a mapping with strings as values.
    """
    for index, output in enumerate(captions):
        check_hypotheses(output, f"captions[{index}]")
    settings = int(np.argmax(scores[1])), int(np.argmax(scores[0]))
    combined = {i: captions[setting][i] for half, setting in zip(halves, settings, strict=True) for i in half}
    return {i: combined[i] for i in captions[0]}, settings
