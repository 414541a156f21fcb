"""Retrieval: how high the right text stands in an image's list, and the right image in a text's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from input_pipeline.errors import DataError


def retrieval_scores(
    similarity: Float[np.ndarray, "images texts"],
    image_of_text: Int[np.ndarray, " texts"],
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall and median rank, both ways.

    A text ranks the images by similarity; an image ranks the texts, and the best placed of its own counts. Of equals
    the right one comes last, so that a model which scores all alike gains nothing.

    Args:
        similarity: the higher, the closer.
        image_of_text: index of each text's image; every image has at least one text.
        at: the k of recall@k.

    Returns:
        "image_to_text_R@1", ..., "image_to_text_median_rank" (1 is best), and the same for "text_to_image".

    Raises:
        DataError: an image has no text.
        ValueError: shapes that do not fit, or a similarity that is not a number.
    """
    similarity, image_of_text = np.asarray(similarity), np.asarray(image_of_text)
    _check(similarity, image_of_text)
    images, texts = similarity.shape
    own = similarity[image_of_text, np.arange(texts)]
    image_ranks_of_texts = (similarity >= own).sum(0)
    # The best of an image's own texts against all others: those that are not its own.
    best = np.full(images, -np.inf)
    np.maximum.at(best, image_of_text, own)
    not_own = image_of_text[None, :] != np.arange(images)[:, None]
    text_ranks_of_images = 1 + (not_own & (similarity >= best[:, None])).sum(1)
    found = {}
    for name, ranks in (("image_to_text", text_ranks_of_images), ("text_to_image", image_ranks_of_texts)):
        for k in at:
            found[f"{name}_R@{k}"] = float((ranks <= k).mean())
        found[f"{name}_median_rank"] = float(np.median(ranks))
    return found


def _check(similarity: np.ndarray, image_of_text: np.ndarray) -> None:
    if similarity.ndim != 2 or image_of_text.shape != similarity.shape[1:]:
        shapes = f"{similarity.shape} and {image_of_text.shape}"
        raise ValueError(f"similarity must be [images, texts] and image_of_text [texts]; their shapes are {shapes}")
    if not similarity.size:
        raise DataError("there is nothing to rank")
    without = np.setdiff1d(np.arange(similarity.shape[0]), image_of_text)
    if len(without):
        raise DataError(f"{len(without)} images have no text, the first is number {without[0]}")
    if image_of_text.min() < 0 or image_of_text.max() >= similarity.shape[0]:
        raise ValueError(f"image_of_text names images outside 0 .. {similarity.shape[0] - 1}")
    if np.isnan(similarity).any():
        raise ValueError("similarity holds values that are not numbers")
