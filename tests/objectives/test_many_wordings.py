"""Training on the reward learns to describe images whose references have so many wordings that cross-entropy fails."""

from __future__ import annotations

import json
from pathlib import Path

import many_wordings
import numpy as np
import pytest
import small_run

from caption_jax.specs import RunSpec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate

NAME = "caption_jax.objectives.sequence_reward:SequenceReward"


def train(images: Path, workdir: Path, **changes) -> dict:
    """Trains, and returns the evaluation of the validation images."""
    config = small_run.get_config().unlock()
    config.data.root = str(images)
    config.update_from_flattened_dict({"data.max_length": 16, "data.captions_per_image": 5, "data.batch_size": 16})
    config.update_from_flattened_dict({"data.eval_batch_size": 24, "decode.max_length": 16, **changes})
    config.model.decoder.width = 32
    config.train.eval_every = config.train.steps
    train_and_evaluate(RunSpec.from_config(config), workdir)
    return json.loads((workdir / "eval_val.json").read_text())


@pytest.mark.slow
def test_the_reward_finds_the_words_that_describe_an_image(tmp_path):
    images = many_wordings.write_images(tmp_path / "data")
    start = train(images, tmp_path / "start", **{"train.steps": 150})
    assert {row["caption"] for row in start["images"]} == {many_wordings.COMMON}
    assert start["metrics"]["CIDEr-D"] == 0 and start["metrics"]["token_accuracy"] > 0.85  # it knows all wordings

    changes = {
        "init_from": str(tmp_path / "start"),
        "train.steps": 100,
        "optimizer.learning_rate": 1e-3,
        "objective.caption_weight": 0.0,
        "objective.terms": {"reward": {"name": NAME}},
    }
    result = train(images, tmp_path / "rewarded", **changes)
    right = [many_wordings.describes(row["caption"], row["image_id"]) for row in result["images"]]
    assert np.mean(right) > 0.9 and result["metrics"]["CIDEr-D"] > 2.5, result["images"]
    rows = [row.values for row in read_metrics(tmp_path / "rewarded" / "metrics.jsonl") if row.split == "train"]
    assert rows[-1]["reward/reward"] > rows[0]["reward/reward"]
    assert rows[-1]["reward/finished"] > 0.9 and rows[-1]["reward/function_word_endings"] < 0.1
