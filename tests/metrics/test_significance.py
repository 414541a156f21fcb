"""Bootstrap intervals, paired comparisons and averages over runs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from caption_jax.metrics import compare, intervals, mean_over_runs, score, score_images

WORDS = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "red", "grass"]


def make_random_captions(images: int, keep_probability: float, seed: int):
    """Returns random references, and captions that keep each word of a reference with `keep_probability`."""
    rng = random.Random(0)
    references = {i: [" ".join(rng.choices(WORDS, k=8)) for _ in range(3)] for i in range(images)}
    rng = random.Random(seed)
    hypotheses = {
        i: " ".join(word if rng.random() < keep_probability else rng.choice(WORDS) for word in captions[0].split())
        for i, captions in references.items()
    }
    return references, hypotheses


def test_intervals_contain_the_score_and_shrink_with_more_images():
    small, large = (intervals(score_images(*make_random_captions(images, 0.7, 1)), samples=300) for images in (40, 640))
    for name, interval in large.items():
        assert interval.low <= interval.value <= interval.high
        if name != "exact_match":
            assert interval.high - interval.low < small[name].high - small[name].low


def test_bootstrap_matches_recomputed_metrics():
    """The reference recomputes all metrics, including corpus-level BLEU, from the sampled images."""
    references, hypotheses = make_random_captions(60, 0.6, 2)
    scores = score_images(references, hypotheses)
    actual = intervals(scores, samples=400, seed=5)
    rng = np.random.default_rng(0)
    recomputed = []
    for _ in range(400):
        sample = dict(enumerate(rng.integers(0, 60, 60)))
        recomputed.append(
            score({k: references[i] for k, i in sample.items()}, {k: hypotheses[i] for k, i in sample.items()})
        )
    for name in ("BLEU-4", "ROUGE-L"):
        low, high = np.quantile([sample[name] for sample in recomputed], [0.025, 0.975])
        width = high - low
        assert actual[name].low == pytest.approx(low, abs=0.25 * width)
        assert actual[name].high == pytest.approx(high, abs=0.25 * width)


def test_intervals_depend_on_the_seed():
    scores = score_images(*make_random_captions(50, 0.7, 1))
    assert intervals(scores, 100, seed=3) == intervals(scores, 100, seed=3)
    assert intervals(scores, 100, seed=3) != intervals(scores, 100, seed=4)


def test_a_better_system_is_significantly_better():
    references, worse = make_random_captions(200, 0.5, 1)
    _, better = make_random_captions(200, 0.8, 2)
    comparison = compare(score_images(references, worse), score_images(references, better), samples=500)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"):
        assert comparison[name].low > 0 and comparison[name].p_value == pytest.approx(1 / 501)
    expected = score(references, better)["BLEU-4"] - score(references, worse)["BLEU-4"]
    assert comparison["BLEU-4"].difference == pytest.approx(expected)


def test_a_system_does_not_differ_from_itself():
    scores = score_images(*make_random_captions(50, 0.7, 1))
    for comparison in compare(scores, scores, samples=200).values():
        assert (comparison.difference, comparison.low, comparison.high, comparison.p_value) == (0, 0, 0, 1)


def test_p_values_are_calibrated():
    # For two systems of the same quality, about one in five p-values is below 0.2.
    p_values = []
    for seed in range(40):
        references, first = make_random_captions(60, 0.6, 2 * seed + 10)
        _, second = make_random_captions(60, 0.6, 2 * seed + 11)
        p_values.append(
            compare(score_images(references, first), score_images(references, second), 200)["BLEU-2"].p_value
        )
    assert 1 <= sum(p < 0.2 for p in p_values) <= 17


def test_runs_are_averaged_per_image():
    references, _ = make_random_captions(80, 0.7, 1)
    runs = [make_random_captions(80, 0.7, seed)[1] for seed in (1, 2, 3)]
    scores_by_run = [score_images(references, run) for run in runs]
    mean = mean_over_runs(scores_by_run).corpus()
    for name in ("CIDEr-D", "ROUGE-L", "exact_match"):
        assert mean[name] == pytest.approx(np.mean([scores.corpus()[name] for scores in scores_by_run]))
    all_references = {(run, image): references[image] for run in range(3) for image in references}
    all_captions = {(run, image): caption for run, captions in enumerate(runs) for image, caption in captions.items()}
    assert mean["BLEU-4"] == pytest.approx(score(all_references, all_captions)["BLEU-4"])
    better = mean_over_runs([score_images(references, make_random_captions(80, 0.8, seed)[1]) for seed in (4, 5, 6)])
    single_run = compare(scores_by_run[0], score_images(references, make_random_captions(80, 0.8, 4)[1]))["CIDEr-D"]
    three_runs = compare(mean_over_runs(scores_by_run), better)["CIDEr-D"]
    assert three_runs.high - three_runs.low < single_run.high - single_run.low
    fewer_images = score_images(*make_random_captions(79, 0.7, 1))
    for invalid in ([], [scores_by_run[0], fewer_images]):
        with pytest.raises(ValueError, match="same images"):
            mean_over_runs(invalid)


def test_invalid_arguments_are_rejected():
    references, hypotheses = make_random_captions(10, 0.7, 1)
    scores = score_images(references, hypotheses)
    with pytest.raises(ValueError, match="same images in the same order"):
        compare(scores, score_images(*make_random_captions(9, 0.7, 1)))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        intervals(scores, 0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        intervals(scores, 10, confidence=95)
