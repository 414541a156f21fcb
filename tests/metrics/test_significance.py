from __future__ import annotations

import random

import numpy as np
import pytest

from caption_jax.metrics import compare, intervals, mean_over_runs, score, score_images

WORDS = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "red", "grass"]


def random_captions(images: int, keep: float, seed: int):
    """Returns random references, and captions that keep each word of a reference with probability `keep`."""
    rng = random.Random(0)
    references = {i: [" ".join(rng.choices(WORDS, k=8)) for _ in range(3)] for i in range(images)}
    rng = random.Random(seed)
    hypotheses = {
        i: " ".join(word if rng.random() < keep else rng.choice(WORDS) for word in captions[0].split())
        for i, captions in references.items()
    }
    return references, hypotheses


def test_intervals_contain_the_score_and_shrink_with_more_images():
    small, large = (intervals(score_images(*random_captions(images, 0.7, 1)), samples=300) for images in (40, 640))
    for name, interval in large.items():
        assert interval.low <= interval.value <= interval.high
        if name != "exact_match":
            assert interval.high - interval.low < small[name].high - small[name].low


def test_bootstrap_matches_plain_resampling():
    # Plain resampling recomputes the metrics, corpus-level BLEU included, from the sampled images.
    references, hypotheses = random_captions(60, 0.6, 2)
    scores = score_images(references, hypotheses)
    actual = intervals(scores, samples=400, seed=5)
    rng = np.random.default_rng(0)
    plain = []
    for _ in range(400):
        sample = dict(enumerate(rng.integers(0, 60, 60)))
        plain.append(
            score({p: references[i] for p, i in sample.items()}, {p: hypotheses[i] for p, i in sample.items()})
        )
    for name in ("BLEU-4", "ROUGE-L"):
        low, high = np.quantile([sample[name] for sample in plain], [0.025, 0.975])
        width = high - low
        assert actual[name].low == pytest.approx(low, abs=0.25 * width)
        assert actual[name].high == pytest.approx(high, abs=0.25 * width)


def test_intervals_depend_on_the_seed():
    scores = score_images(*random_captions(50, 0.7, 1))
    assert intervals(scores, 100, seed=3) == intervals(scores, 100, seed=3)
    assert intervals(scores, 100, seed=3) != intervals(scores, 100, seed=4)


def test_a_better_system_is_significantly_better():
    references, worse = random_captions(200, 0.5, 1)
    _, better = random_captions(200, 0.8, 2)
    comparison = compare(score_images(references, worse), score_images(references, better), samples=500)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"):
        assert comparison[name].low > 0 and comparison[name].p_value == pytest.approx(1 / 501)
    expected = score(references, better)["BLEU-4"] - score(references, worse)["BLEU-4"]
    assert comparison["BLEU-4"].difference == pytest.approx(expected)


def test_a_system_does_not_differ_from_itself():
    scores = score_images(*random_captions(50, 0.7, 1))
    for comparison in compare(scores, scores, samples=200).values():
        assert (comparison.difference, comparison.low, comparison.high, comparison.p_value) == (0, 0, 0, 1)


def test_p_values_are_calibrated():
    # For two systems of the same quality, about one in five p-values is below 0.2.
    p_values = []
    for seed in range(40):
        references, first = random_captions(60, 0.6, 2 * seed + 10)
        _, second = random_captions(60, 0.6, 2 * seed + 11)
        p_values.append(
            compare(score_images(references, first), score_images(references, second), 200)["BLEU-2"].p_value
        )
    assert 1 <= sum(p < 0.2 for p in p_values) <= 17


def test_runs_are_averaged_per_image():
    references, _ = random_captions(80, 0.7, 1)
    runs = [random_captions(80, 0.7, seed)[1] for seed in (1, 2, 3)]
    scored = [score_images(references, run) for run in runs]
    mean = mean_over_runs(scored).corpus()
    for name in ("CIDEr-D", "ROUGE-L", "exact_match"):
        assert mean[name] == pytest.approx(np.mean([one.corpus()[name] for one in scored]))
    all_references = {(run, image): references[image] for run in range(3) for image in references}
    all_captions = {(run, image): caption for run, captions in enumerate(runs) for image, caption in captions.items()}
    assert mean["BLEU-4"] == pytest.approx(score(all_references, all_captions)["BLEU-4"])
    better = mean_over_runs([score_images(references, random_captions(80, 0.8, seed)[1]) for seed in (4, 5, 6)])
    one = compare(scored[0], score_images(references, random_captions(80, 0.8, 4)[1]))
    several = compare(mean_over_runs(scored), better)
    assert several["CIDEr-D"].high - several["CIDEr-D"].low < one["CIDEr-D"].high - one["CIDEr-D"].low
    other = score_images(*random_captions(79, 0.7, 1))
    for wrong in ([], [scored[0], other]):
        with pytest.raises(ValueError, match="same images"):
            mean_over_runs(wrong)


def test_invalid_arguments_are_rejected():
    references, hypotheses = random_captions(10, 0.7, 1)
    scores = score_images(references, hypotheses)
    with pytest.raises(ValueError, match="same images in the same order"):
        compare(scores, score_images(*random_captions(9, 0.7, 1)))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        intervals(scores, 0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        intervals(scores, 10, confidence=95)
