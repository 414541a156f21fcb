"""The evaluator that scores captions in the joint embedding."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from small_run import TEXT_ENCODER_FLAGS, run_main

import caption_jax
from caption_jax.errors import ConfigError
from caption_jax.evaluation.final_evaluation import evaluate_split
from caption_jax.evaluation.image_text_score import JointEmbeddingScore, image_text_scores, reference_scores
from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import RunSpec
from caption_jax.telemetry.metrics_file import read_metrics

SCORE, REFERENCE_SCORE = "custom/joint_embedding_score", "custom/ref_joint_embedding_score"

CONFIG = """
from ml_collections import ConfigDict
import small_run

def get_config():
    config = small_run.get_config()
    with config.unlocked():
        config.evaluators = ConfigDict(
            {"custom": {"name": "caption_jax.evaluation.image_text_score:JointEmbeddingScore", "weight": 1.5}}
        )
    return config
"""


def cosine_similarity(first, second) -> float:
    return float(np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def make_unit_vectors(rng, count) -> np.ndarray:
    vectors = rng.normal(size=(count, 5))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_match_the_formulas_of_the_paper():
    rng = np.random.default_rng(0)
    images, captions, closest = make_unit_vectors(rng, 40), make_unit_vectors(rng, 40), rng.uniform(-1, 1, 40)
    scores = image_text_scores(images, captions, 2.5)
    combined_scores = reference_scores(scores, closest)
    assert (scores == 0).any() and (scores > 0).any()
    for image, caption, closest_score, score, combined in zip(
        images, captions, closest, scores, combined_scores, strict=True
    ):
        expected = 2.5 * max(cosine_similarity(image, caption), 0)
        assert score == pytest.approx(expected, abs=1e-12)
        if expected > 0 and closest_score > 0:
            assert combined == pytest.approx(2 / (1 / expected + 1 / closest_score))
        else:
            assert combined == 0


def read_spec_with_score(workdir: Path, batch_size: int = 2, devices: int = 1) -> RunSpec:
    """Returns the spec of the run with the score added as an evaluator."""
    spec = read_spec(workdir)
    data = dataclasses.replace(spec.data, eval_batch_size=batch_size)
    mesh = dataclasses.replace(spec.mesh, data=devices)
    return dataclasses.replace(spec, data=data, mesh=mesh, evaluators={"custom": JointEmbeddingScore()})


@pytest.mark.slow
def test_scores_match_cosine_similarities_of_the_captioner(searchable_workdir, distinct_images):
    experiment = open_experiment(epath.Path(searchable_workdir), read_spec_with_score(searchable_workdir))
    evaluate_split(experiment, "test")
    captioner = caption_jax.load(searchable_workdir)
    results = json.loads((searchable_workdir / "eval_test.json").read_text())
    scores = []
    for row, record in zip(results["images"], experiment.split("test"), strict=True):
        image, text, *references = [
            captioner.embed_images([record.image])[0],
            *captioner.embed_texts([row["caption"], *record.captions]),
        ]
        score = 2.5 * max(cosine_similarity(image, text), 0)
        closest = max(0, *(cosine_similarity(text, reference) for reference in references))
        assert row[SCORE] == pytest.approx(score, abs=1e-4)
        mean = 2 * score * closest / (score + closest) if score + closest else 0
        assert row[REFERENCE_SCORE] == pytest.approx(mean, abs=1e-4)
        scores.append(score)
    assert max(scores) > 0.5
    assert results["metrics"][SCORE] == pytest.approx(np.mean(scores), abs=1e-4)
    assert results["protocol"]["evaluators"]["custom"]["weight"] == 2.5
    assert "CIDEr-D" in results["metrics"] and "image_to_text_R@1" in results["metrics"]


@pytest.mark.slow
def test_scores_do_not_depend_on_padding_or_devices(searchable_workdir):
    evaluations = []
    for batch_size, devices in ((2, 1), (8, 8)):  # the split has two images, so six of eight rows are padding
        spec = read_spec_with_score(searchable_workdir, batch_size, devices)
        experiment = open_experiment(epath.Path(searchable_workdir), spec)
        variables = read_weights(searchable_workdir).variables
        evaluations.append(SplitEvaluator(experiment, "val")(variables, 1))
    single, sharded = evaluations
    assert single.captions == sharded.captions and len(sharded.per_image[SCORE]) == 2
    for name in single.metrics:
        assert sharded.metrics[name] == pytest.approx(single.metrics[name], abs=1e-5)
    for image_id, score in single.per_image[SCORE].items():
        assert sharded.per_image[SCORE][image_id] == pytest.approx(score, abs=1e-5)


def test_a_model_without_a_joint_embedding_is_rejected(small_workdir):
    experiment = open_experiment(epath.Path(small_workdir), read_spec_with_score(small_workdir))
    with pytest.raises(ConfigError, match=r"requires a model with a joint embedding of .*: train one with"):
        SplitEvaluator(experiment, "val")


def test_a_class_that_is_not_an_evaluator_is_rejected(small_workdir):
    spec = read_spec_with_score(small_workdir)
    experiment = open_experiment(
        epath.Path(small_workdir), dataclasses.replace(spec, evaluators={"custom": spec.decode})
    )
    with pytest.raises(ConfigError, match=r"config.evaluators.custom.name=.*DecodeSpec is not an evaluator"):
        SplitEvaluator(experiment, "val")


@pytest.fixture
def config_flag(tmp_path):
    file = tmp_path / "score_config.py"
    file.write_text(CONFIG)
    return f"--config={file}"


def test_an_unknown_best_metric_is_rejected_before_training(config_flag, tmp_path, distinct_images):
    flags = [config_flag, f"--workdir={tmp_path / 'run'}", f"--config.data.root={distinct_images}", *TEXT_ENCODER_FLAGS]
    with pytest.raises(ConfigError, match=rf"best_metric is 'CIDEr'; it must be one of BLEU-1, .*R@1.*, {SCORE}, "):
        run_main(*flags, "--config.train.best_metric=CIDEr", "--dry_run")


@pytest.mark.slow
def test_a_run_saves_the_weights_with_the_best_score(config_flag, tmp_path, distinct_images, compile_cache):
    workdir = tmp_path / "run"
    flags = [f"--config.train.best_metric={SCORE}", "--config.train.steps=6", "--config.train.eval_every=2"]
    data = f"--config.data.root={distinct_images}"
    assert run_main(config_flag, f"--workdir={workdir}", data, *TEXT_ENCODER_FLAGS, *flags) == 0
    rows = {row.step: row.values[SCORE] for row in read_metrics(workdir / "metrics.jsonl") if row.split == "val"}
    assert list(rows) == [2, 4, 6]
    best = read_weights(workdir).step
    assert rows[best] == max(rows.values())
    results = json.loads((workdir / "eval_val.json").read_text())
    assert results["step"] == best and results["metrics"][SCORE] == pytest.approx(rows[best], abs=1e-5)
    assert results["protocol"]["evaluators"]["custom"]["weight"] == 1.5
