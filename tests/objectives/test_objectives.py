"""Objectives selected in a config: constants, metrics and validation."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from token_frequencies import NAME, FrequentTokens, ImageVariance

from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.objectives.constants import (
    check_same_constants,
    compute_fingerprints,
    load_constants,
    prepare_constants,
    store_constants,
)
from caption_jax.objectives.objective import ObjectiveOutput, Ratio
from caption_jax.objectives.total_objective import check_batch, make_objectives, mean_metrics, total_loss
from caption_jax.specs import ObjectiveSpec, RunSpec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate


class WordLengthVocabulary:
    """Encodes each word as 4 plus its length."""

    size = 9

    def encode(self, text: str, max_length: int) -> np.ndarray:
        return np.array([0, *(4 + len(word) for word in text.split()), 2])


def make_experiment(workdir, *captions: str, has_checkpoint: bool = False) -> SimpleNamespace:
    """Returns a stub of an experiment on one image with the given captions."""
    if has_checkpoint:
        (workdir / "checkpoints" / "last" / "3").mkdir(parents=True, exist_ok=True)
    split = [SimpleNamespace(captions=captions)]
    return SimpleNamespace(
        workdir=epath.Path(workdir),
        split=lambda name: split,
        description=SimpleNamespace(vocabulary=WordLengthVocabulary()),
    )


def test_constants_are_prepared_once_and_reused_on_resume(tmp_path):
    objectives = {"rare": FrequentTokens(1.0)}
    first = prepare_constants(objectives, make_experiment(tmp_path, "a dog"))
    assert first["rare"]["tokens"]["frequency"].sum() == 1
    store_constants(objectives, first, epath.Path(tmp_path))
    resumed = prepare_constants(
        {"rare": FrequentTokens(0.5)}, make_experiment(tmp_path, "a fly is", has_checkpoint=True)
    )
    jax.tree.map(np.testing.assert_array_equal, resumed, first)
    jax.tree.map(np.testing.assert_array_equal, load_constants(objectives, epath.Path(tmp_path)), first)
    check_same_constants(compute_fingerprints(first), compute_fingerprints(resumed), tmp_path)


def test_a_new_run_does_not_reuse_stored_constants(tmp_path):
    objectives = {"rare": FrequentTokens(1.0)}
    store_constants(objectives, prepare_constants(objectives, make_experiment(tmp_path, "a dog")), epath.Path(tmp_path))
    prepared = prepare_constants(objectives, make_experiment(tmp_path, "a a a dog"))
    assert prepared["rare"]["tokens"]["frequency"][5] == 0.5  # 3 of the 6 tokens: <s>, four words and </s>


def test_resuming_with_different_constants_is_rejected(tmp_path):
    objectives = {"rare": FrequentTokens(1.0)}
    first = prepare_constants(objectives, make_experiment(tmp_path, "a dog"))
    store_constants(objectives, first, epath.Path(tmp_path))
    changed = prepare_constants(
        {"rare": FrequentTokens(1.0, power=0.5)}, make_experiment(tmp_path, "a dog", has_checkpoint=True)
    )
    with pytest.raises(WorkdirError, match=r"constants of config.objective.terms.rare"):
        check_same_constants(compute_fingerprints(first), compute_fingerprints(changed), tmp_path)
    check_same_constants({}, compute_fingerprints(changed), tmp_path)  # saved before the term was added


def test_losses_are_divided_by_the_counts_of_the_whole_batch():
    objectives = {"captions": FrequentTokens(1.0), "custom": FrequentTokens(0.5)}
    ratio = Ratio(np.float32(6), np.float32(4))
    terms = {
        label: ObjectiveOutput({"loss": ratio}, {"empty": Ratio(np.float32(0), np.float32(0))}) for label in objectives
    }
    totals = {"captions": {"loss": np.float32(12)}, "custom": {"loss": np.float32(8)}}
    assert float(total_loss(objectives, terms, totals)) == 6 / 12 + 0.5 * 6 / 8
    means = mean_metrics(terms)
    assert means == {"loss": 1.5, "empty": 0, "custom/loss": 1.5, "custom/empty": 0}


def test_a_cross_entropy_of_weight_0_is_reported_but_not_part_of_the_loss():
    objectives = make_objectives(
        ObjectiveSpec(caption_weight=0.0, terms={"custom": FrequentTokens()}), joint_embedding=False
    )
    ratios = {"captions": Ratio(np.float32(np.nan), np.float32(2)), "custom": Ratio(np.float32(6), np.float32(2))}
    terms = {label: ObjectiveOutput({"loss": ratio}, {}) for label, ratio in ratios.items()}
    totals = {label: {"loss": np.float32(2)} for label in ratios}
    assert float(total_loss(objectives, terms, totals)) == objectives["custom"].weight * 3
    assert np.isnan(mean_metrics(terms)["loss"])


def test_invalid_objectives_are_rejected():
    with pytest.raises(ConfigError, match="label is reserved"):
        make_objectives(ObjectiveSpec(terms={"captions": FrequentTokens()}), joint_embedding=False)
    with pytest.raises(ConfigError, match="OptimizerSpec is not an objective"):
        make_objectives(ObjectiveSpec(terms={"custom": RunSpec().optimizer}), joint_embedding=False)
    with pytest.raises(ConfigError, match=r"'spread' requires depth, but .* only contain mask, tokens"):
        check_batch({"spread": ImageVariance()}, {"tokens": 0, "mask": 0})


def test_gradient_accumulation_rejects_terms_that_compare_rows():
    config = small_run.get_config().unlock()
    config.objective.terms = {"spread": {"name": "token_frequencies:ImageVariance"}}
    RunSpec.from_config(config)
    config.optimizer.grad_accum_steps = 2
    with pytest.raises(ConfigError, match=r"grad_accum_steps=2 with config.objective.terms.spread: it compares"):
        RunSpec.from_config(config)


@pytest.mark.slow
def test_a_run_with_constants_can_be_resumed(small_images, tmp_path):
    config = small_run.get_config().unlock()
    config.data.root = str(small_images)
    config.update_from_flattened_dict({"train.steps": 4, "train.log_every": 1, "train.packing": "never"})
    config.objective.terms = {"rare": {"name": NAME, "weight": 0.5}}
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    assert (tmp_path / "objectives" / "rare.npz").exists()
    config.train.steps = 6
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    config.train.steps = 8
    config.objective.terms.rare.power = 0.5
    with pytest.raises(WorkdirError, match=r"constants of config.objective.terms.rare"):
        train_and_evaluate(RunSpec.from_config(config), tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row.split == "train"]
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(0 < row.values["rare/loss"] < 1 for row in rows)
