"""Properties of validation captions, and the warning about a reward that rises while the captions become worse."""

from __future__ import annotations

import math

import pytest

from caption_jax.telemetry.metrics_file import Row
from caption_jax.training.caption_trends import describe_captions, find_conflicts, warn_about_rewards


def make_rows(*evaluations: tuple[float, dict[str, float]], name: str = "reward/reward") -> list[Row]:
    """Returns the rows of a run with two log points before each evaluation, given their mean reward."""
    rows = []
    for number, (reward, metrics) in enumerate(evaluations):
        rows += [Row(10 * number + step, "train", {"loss": 1.0, name: reward + step - 5}) for step in (4, 6)]
        rows.append(Row(10 * number + 10, "val", metrics))
    return rows


def test_a_reward_that_rises_while_a_metric_falls_is_reported():
    rows = make_rows(
        (0.5, {"BLEU-4": 0.19}), (0.6, {"BLEU-4": 0.20}), (0.7, {"BLEU-4": 0.195}), (0.8, {"BLEU-4": 0.17})
    )
    (message,) = find_conflicts(rows)
    assert message.startswith(
        "since step 20, the reward of samples has risen from 0.600 to 0.800, but BLEU-4 of the validation split has "
        "fallen from 0.200 to 0.170"
    )
    recall = make_rows((0.5, {"image_to_text_R@1": 0.3}), (0.6, {"image_to_text_R@1": 0.2}), name="scst/reward")
    assert "image_to_text_R@1" in find_conflicts(recall)[0]


@pytest.mark.parametrize(
    "evaluations",
    [
        [(0.5, {"BLEU-4": 0.20}), (0.6, {"BLEU-4": 0.195})],  # noise
        [(0.6, {"BLEU-4": 0.20}), (0.5, {"BLEU-4": 0.10})],  # the reward falls as well
        [(0.5, {"BLEU-4": 0.20}), (0.6, {"BLEU-4": 0.10}), (0.7, {"BLEU-4": 0.21})],  # recovered
        [(math.nan, {"BLEU-4": 0.20}), (math.nan, {"BLEU-4": 0.10})],  # a step without finite values
        [(0.5, {"loss": 1.0}), (0.6, {"loss": 2.0})],
        [(0.5, {"BLEU-4": 0.20})],
        [],
    ],
)
def test_other_courses_are_not_reported(evaluations):
    assert find_conflicts(make_rows(*evaluations)) == []
    assert find_conflicts(make_rows(*evaluations, name="loss")) == []  # no objective has a reward


def test_a_run_warns(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    rows = make_rows((0.5, {"BLEU-4": 0.2}), (0.6, {"BLEU-4": 0.1}))
    path.write_text("".join(row.to_line() for row in rows))
    with caplog.at_level("WARNING", "absl"):
        warn_about_rewards(path)
    assert "the model exploits the reward" in caplog.text


def test_properties_of_captions_are_scalars():
    values = describe_captions({1: "a dog", 2: "a dog", 3: "a cat on the"}, "ptb")
    assert values["captions/most_common"] == pytest.approx(2 / 3)
    assert values["captions/function_word_ending"] == pytest.approx(1 / 3)
