"""The score of captions in the joint embedding, selected by a config."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from small_run import WITH_TEXT_ENCODER, quick_compilation, run_main

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

SCORE, WITH_REFERENCES = "own/joint_embedding_score", "own/ref_joint_embedding_score"

CONFIG = """
from ml_collections import ConfigDict
import small_run

def get_config():
    config = small_run.get_config()
    with config.unlocked():
        config.evaluators = ConfigDict(
            {"own": {"name": "caption_jax.evaluation.image_text_score:JointEmbeddingScore", "weight": 1.5}}
        )
    return config
"""


def cosine(first, second) -> float:
    return float(np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second))


def unit_vectors(rng, count) -> np.ndarray:
    vectors = rng.normal(size=(count, 5))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_follow_the_formulas_of_the_paper():
    rng = np.random.default_rng(0)
    images, captions, closest = unit_vectors(rng, 40), unit_vectors(rng, 40), rng.uniform(-1, 1, 40)
    scores = image_text_scores(images, captions, 2.5)
    with_references = reference_scores(scores, closest)
    assert (scores == 0).any() and (scores > 0).any()
    for image, caption, closest_score, score, combined in zip(
        images, captions, closest, scores, with_references, strict=True
    ):
        expected = 2.5 * max(cosine(image, caption), 0)
        assert score == pytest.approx(expected, abs=1e-12)
        if expected > 0 and closest_score > 0:
            assert combined == pytest.approx(2 / (1 / expected + 1 / closest_score))
        else:
            assert combined == 0


def with_score(workdir: Path, **changes) -> RunSpec:
    spec = read_spec(workdir)
    data = dataclasses.replace(spec.data, eval_batch_size=changes.get("batch", 2))
    mesh = dataclasses.replace(spec.mesh, data=changes.get("devices", 1))
    return dataclasses.replace(spec, data=data, mesh=mesh, evaluators={"own": JointEmbeddingScore()})


def test_scores_are_cosines_of_the_vectors_of_the_captioner(searchable_workdir, distinct_images):
    with quick_compilation():
        experiment = open_experiment(epath.Path(searchable_workdir), with_score(searchable_workdir))
        evaluate_split(experiment, "test")
        captioner = caption_jax.load(searchable_workdir)
        results = json.loads((searchable_workdir / "eval_test.json").read_text())
        scores = []
        for row, record in zip(results["images"], experiment.split("test"), strict=True):
            image, text, *references = [
                captioner.embed_images([record.image])[0],
                *captioner.embed_texts([row["caption"], *record.captions]),
            ]
            score = 2.5 * max(cosine(image, text), 0)
            closest = max(0, *(cosine(text, reference) for reference in references))
            assert row[SCORE] == pytest.approx(score, abs=1e-4)
            mean = 2 * score * closest / (score + closest) if score + closest else 0
            assert row[WITH_REFERENCES] == pytest.approx(mean, abs=1e-4)
            scores.append(score)
    assert max(scores) > 0.5
    assert results["metrics"][SCORE] == pytest.approx(np.mean(scores), abs=1e-4)
    assert results["protocol"]["evaluators"]["own"]["weight"] == 2.5
    assert "CIDEr-D" in results["metrics"] and "image_to_text_R@1" in results["metrics"]


@pytest.mark.slow
def test_scores_do_not_depend_on_padding_or_devices(searchable_workdir):
    evaluations = []
    for changes in ({"batch": 2, "devices": 1}, {"batch": 8, "devices": 8}):  # two images, so six rows are padding
        spec = with_score(searchable_workdir, **changes)
        experiment = open_experiment(epath.Path(searchable_workdir), spec)
        with quick_compilation():
            variables = read_weights(searchable_workdir).variables
            evaluations.append(SplitEvaluator(experiment, "val")(variables, 1))
    one, eight = evaluations
    assert one.captions == eight.captions and len(eight.per_image[SCORE]) == 2
    for name in one.metrics:
        assert eight.metrics[name] == pytest.approx(one.metrics[name], abs=1e-5)
    for image_id, score in one.per_image[SCORE].items():
        assert eight.per_image[SCORE][image_id] == pytest.approx(score, abs=1e-5)


def test_a_model_without_a_joint_embedding_is_rejected(small_workdir):
    experiment = open_experiment(epath.Path(small_workdir), with_score(small_workdir))
    with pytest.raises(ConfigError, match=r"requires a model with a joint embedding of .*: train one with"):
        SplitEvaluator(experiment, "val")


def test_an_extension_of_another_kind_is_rejected(small_workdir):
    spec = with_score(small_workdir)
    experiment = open_experiment(epath.Path(small_workdir), dataclasses.replace(spec, evaluators={"own": spec.decode}))
    with pytest.raises(ConfigError, match=r"config.evaluators.own.name=.*DecodeSpec is not an evaluator"):
        SplitEvaluator(experiment, "val")


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "with_score.py"
    file.write_text(CONFIG)
    return f"--config={file}"


def test_an_unknown_best_metric_is_rejected_before_training(config, tmp_path, distinct_images):
    train = [config, f"--workdir={tmp_path / 'run'}", f"--config.data.root={distinct_images}", *WITH_TEXT_ENCODER]
    with pytest.raises(ConfigError, match=rf"best_metric is 'CIDEr'; it must be one of BLEU-1, .*R@1.*, {SCORE}, "):
        run_main(*train, "--config.train.best_metric=CIDEr", "--dry_run")


@pytest.mark.slow
def test_a_run_saves_the_weights_with_the_best_score(config, tmp_path, distinct_images, compile_cache):
    workdir = tmp_path / "run"
    flags = [f"--config.train.best_metric={SCORE}", "--config.train.steps=6", "--config.train.eval_every=2"]
    data = f"--config.data.root={distinct_images}"
    assert run_main(config, f"--workdir={workdir}", data, *WITH_TEXT_ENCODER, *flags) == 0
    rows = {row.step: row.values[SCORE] for row in read_metrics(workdir / "metrics.jsonl") if row.split == "val"}
    assert list(rows) == [2, 4, 6]
    best = read_weights(workdir).step
    assert rows[best] == max(rows.values())
    results = json.loads((workdir / "eval_val.json").read_text())
    assert results["step"] == best and results["metrics"][SCORE] == pytest.approx(rows[best], abs=1e-5)
    assert results["protocol"]["evaluators"]["own"]["weight"] == 1.5
