from __future__ import annotations

import random

import numpy as np
import pytest

from caption_jax.metrics import compare, intervals, mean_over_runs, score, score_images

WORDS = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "red", "grass"]


def made_up(images: int, keep: float, seed: int):
    """References of random words, and captions that keep each word of one of them with a given chance."""
    rng = random.Random(0)
    references = {i: [" ".join(rng.choices(WORDS, k=8)) for _ in range(3)] for i in range(images)}
    rng = random.Random(seed)
    hypotheses = {
        i: " ".join(word if rng.random() < keep else rng.choice(WORDS) for word in captions[0].split())
        for i, captions in references.items()
    }
    return references, hypotheses


def test_intervals_hold_the_score_and_shrink_with_more_images():
    small, large = (intervals(score_images(*made_up(images, 0.7, 1)), samples=300) for images in (40, 640))
    for name, interval in large.items():
        assert interval.low <= interval.value <= interval.high
        if name != "exact_match":
            assert interval.high - interval.low < small[name].high - small[name].low


def test_a_bootstrap_sample_is_the_score_of_the_drawn_images():
    # Against plain resampling, metric by metric: BLEU scored anew from the drawn images.
    references, hypotheses = made_up(60, 0.6, 2)
    scores = score_images(references, hypotheses)
    found = intervals(scores, samples=400, seed=5)
    rng = np.random.default_rng(0)
    plain = []
    for _ in range(400):
        drawn = rng.integers(0, 60, 60)
        names = {place: image for place, image in enumerate(drawn)}
        plain.append(score({p: references[i] for p, i in names.items()}, {p: hypotheses[i] for p, i in names.items()}))
    for name in ("BLEU-4", "ROUGE-L"):
        low, high = np.quantile([sample[name] for sample in plain], [0.025, 0.975])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.25 * width)
        assert found[name].high == pytest.approx(high, abs=0.25 * width)


def test_the_seed_decides():
    scores = score_images(*made_up(50, 0.7, 1))
    assert intervals(scores, 100, seed=3) == intervals(scores, 100, seed=3)
    assert intervals(scores, 100, seed=3) != intervals(scores, 100, seed=4)


def test_a_better_system_is_found_better():
    references, worse = made_up(200, 0.5, 1)
    _, better = made_up(200, 0.8, 2)
    found = compare(score_images(references, worse), score_images(references, better), samples=500)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"):
        assert found[name].low > 0 and found[name].p_value == pytest.approx(1 / 501)
    expected = score(references, better)["BLEU-4"] - score(references, worse)["BLEU-4"]
    assert found["BLEU-4"].difference == pytest.approx(expected)


def test_a_system_does_not_differ_from_itself():
    scores = score_images(*made_up(50, 0.7, 1))
    for found in compare(scores, scores, samples=200).values():
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_p_values_are_not_small_by_themselves():
    # Two systems of the same quality, many times over: about one in five p-values is below 0.2.
    p_values = []
    for seed in range(40):
        references, first = made_up(60, 0.6, 2 * seed + 10)
        _, second = made_up(60, 0.6, 2 * seed + 11)
        p_values.append(
            compare(score_images(references, first), score_images(references, second), 200)["BLEU-2"].p_value
        )
    assert 1 <= sum(p < 0.2 for p in p_values) <= 17


def test_runs_are_averaged_image_by_image():
    references, _ = made_up(80, 0.7, 1)
    runs = [made_up(80, 0.7, seed)[1] for seed in (1, 2, 3)]
    scored = [score_images(references, run) for run in runs]
    mean = mean_over_runs(scored).corpus()
    for name in ("CIDEr-D", "ROUGE-L", "exact_match"):
        assert mean[name] == pytest.approx(np.mean([one.corpus()[name] for one in scored]))
    thrice = {(run, image): references[image] for run in range(3) for image in references}
    said = {(run, image): caption for run, captions in enumerate(runs) for image, caption in captions.items()}
    assert mean["BLEU-4"] == pytest.approx(score(thrice, said)["BLEU-4"])
    better = mean_over_runs([score_images(references, made_up(80, 0.8, seed)[1]) for seed in (4, 5, 6)])
    one = compare(scored[0], score_images(references, made_up(80, 0.8, 4)[1]))
    several = compare(mean_over_runs(scored), better)
    assert several["CIDEr-D"].high - several["CIDEr-D"].low < one["CIDEr-D"].high - one["CIDEr-D"].low
    other = score_images(*made_up(79, 0.7, 1))
    for wrong in ([], [scored[0], other]):
        with pytest.raises(ValueError, match="same images"):
            mean_over_runs(wrong)


def test_wrong_arguments_are_refused():
    references, hypotheses = made_up(10, 0.7, 1)
    scores = score_images(references, hypotheses)
    with pytest.raises(ValueError, match="same images in the same order"):
        compare(scores, score_images(*made_up(9, 0.7, 1)))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        intervals(scores, 0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        intervals(scores, 10, confidence=95)
