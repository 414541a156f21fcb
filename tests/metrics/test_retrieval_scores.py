"""Retrieval scores compared with a brute-force implementation."""

from __future__ import annotations

import numpy as np
import pytest
from shape_checks import unchecked_shapes

from caption_jax.metrics import retrieval_scores


def compute_brute_force_scores(similarity, image_of_text, cutoffs=(1, 5, 10)):
    images, texts = similarity.shape
    image_ranks, text_ranks = [], []
    for text in range(texts):
        correct = similarity[image_of_text[text], text]
        image_ranks.append(1 + sum(similarity[i, text] >= correct for i in range(images) if i != image_of_text[text]))
    for image in range(images):
        best = max(similarity[image, t] for t in range(texts) if image_of_text[t] == image)
        text_ranks.append(1 + sum(similarity[image, t] >= best for t in range(texts) if image_of_text[t] != image))
    scores = {}
    for name, ranks in (("image_to_text", text_ranks), ("text_to_image", image_ranks)):
        scores |= {f"{name}_R@{k}": np.mean([rank <= k for rank in ranks]) for k in cutoffs}
        scores[f"{name}_median_rank"] = np.median(ranks)
    return scores


@pytest.mark.parametrize("tie_levels", [0, 5])
def test_scores_match_brute_force(tie_levels):
    rng = np.random.default_rng(tie_levels)
    image_of_text = rng.permutation(np.repeat(np.arange(13), 3))
    similarity = rng.standard_normal((13, 39))
    if tie_levels:
        similarity = np.round(similarity * tie_levels / 3)  # many ties
    assert retrieval_scores(similarity, image_of_text) == pytest.approx(
        compute_brute_force_scores(similarity, image_of_text)
    )


def test_scores_of_perfect_and_constant_similarities():
    image_of_text = np.repeat(np.arange(20), 2)
    perfect = retrieval_scores((image_of_text == np.arange(20)[:, None]).astype(float), image_of_text)
    assert perfect["image_to_text_R@1"] == perfect["text_to_image_R@1"] == 1
    assert perfect["image_to_text_median_rank"] == perfect["text_to_image_median_rank"] == 1
    constant = retrieval_scores(np.zeros((20, 40)), image_of_text)
    assert constant["text_to_image_R@10"] == 0 and constant["text_to_image_median_rank"] == 20


def test_invalid_arguments_are_rejected():
    with unchecked_shapes(), pytest.raises(ValueError, match="shapes are"):
        retrieval_scores(np.zeros((2, 3)), np.array([0, 1]))
    with pytest.raises(ValueError, match="1 images have no text; the first has index 1"):
        retrieval_scores(np.zeros((2, 2)), np.array([0, 0]))
    with pytest.raises(ValueError, match="outside 0"):
        retrieval_scores(np.zeros((2, 3)), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="contains NaN"):
        retrieval_scores(np.full((1, 1), np.nan), np.array([0]))
