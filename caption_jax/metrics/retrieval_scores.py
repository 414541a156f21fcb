"""Image-text retrieval metrics: recall@k and median rank, in both directions."""

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
    """Computes recall@k and median rank for image-to-text and text-to-image retrieval.

    If an image has several texts, image-to-text retrieval uses the rank of its best text. Ties count against the
    correct item, so that constant similarities are not rewarded.

    Args:
        similarity: similarity scores; higher is more similar.
        image_of_text: image index of each text; every image has at least one text.
        at: values of k for recall@k.

    Returns:
        "image_to_text_R@1", ..., "image_to_text_median_rank" (1 is best), and the same for "text_to_image".

    Raises:
        TypeError: `similarity` does not contain numbers, or `image_of_text` does not contain integers.
        DataError: `similarity` is empty, or an image has no text.
        ValueError: the shapes do not match, an index is out of range, or a similarity is NaN.
    """
    similarity, image_of_text = np.asarray(similarity), np.asarray(image_of_text)
    _check_inputs(similarity, image_of_text)
    num_images, num_texts = similarity.shape
    correct = similarity[image_of_text, np.arange(num_texts)]
    text_to_image_ranks = (similarity >= correct).sum(0)
    # The best text of an image is ranked among the texts of all other images.
    best_correct = np.full(num_images, -np.inf)
    np.maximum.at(best_correct, image_of_text, correct)
    is_incorrect = image_of_text[None, :] != np.arange(num_images)[:, None]
    image_to_text_ranks = 1 + (is_incorrect & (similarity >= best_correct[:, None])).sum(1)
    metrics = {}
    for name, ranks in (("image_to_text", image_to_text_ranks), ("text_to_image", text_to_image_ranks)):
        for k in at:
            metrics[f"{name}_R@{k}"] = float((ranks <= k).mean())
        metrics[f"{name}_median_rank"] = float(np.median(ranks))
    return metrics


def _check_inputs(similarity: np.ndarray, image_of_text: np.ndarray) -> None:
    if similarity.size and not (np.issubdtype(similarity.dtype, np.number) or similarity.dtype == bool):
        raise TypeError(f"similarity must be an array of numbers [images, texts], not of {similarity.dtype}")
    if image_of_text.size and not np.issubdtype(image_of_text.dtype, np.integer):
        raise TypeError(f"image_of_text must be an array of image indices [texts], not of {image_of_text.dtype}")
    if similarity.ndim != 2 or image_of_text.shape != similarity.shape[1:]:
        shapes = f"{similarity.shape} and {image_of_text.shape}"
        raise ValueError(f"similarity must be [images, texts] and image_of_text [texts]; the shapes are {shapes}")
    if not similarity.size:
        raise DataError("similarity is empty; there is nothing to rank")
    images_without_text = np.setdiff1d(np.arange(similarity.shape[0]), image_of_text)
    if len(images_without_text):
        first = images_without_text[0]
        raise DataError(f"{len(images_without_text)} images have no text; the first has index {first}")
    if image_of_text.min() < 0 or image_of_text.max() >= similarity.shape[0]:
        raise ValueError(f"image_of_text contains indices outside 0 .. {similarity.shape[0] - 1}")
    if np.isnan(similarity).any():
        raise ValueError("similarity contains NaN")
