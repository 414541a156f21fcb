"""Training with a text encoder: retrieval, metrics, resuming and validation."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
from etils import epath
from resume_run import assert_same_state, list_saved_steps

import caption_jax
from caption_jax.config import to_config_dict
from caption_jax.evaluation.recall import split_retrieval
from caption_jax.metrics import retrieval_scores
from caption_jax.runs.experiment import start_experiment
from caption_jax.runs.workdir import read_description, read_spec
from caption_jax.specs import RunSpec
from caption_jax.telemetry.metrics_file import read_metrics
from caption_jax.training.loop import train_and_evaluate
from input_pipeline.records import Record, Split

METRIC_NAMES = {
    f"{direction}_{metric}"
    for direction in ("image_to_text", "text_to_image")
    for metric in ("R@1", "R@5", "R@10", "median_rank")
}


@pytest.fixture(scope="module")
def expected_scores(searchable_workdir, distinct_images) -> dict[str, float]:
    """Retrieval scores of the training images and captions, computed through the Python API."""
    captioner = caption_jax.load(str(searchable_workdir))
    with (distinct_images / "captions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    names = sorted({row["image"] for row in rows})
    images = captioner.embed_images([distinct_images / "images" / name for name in names])
    texts = captioner.embed_texts([row["caption"] for row in rows])
    assert images.shape == (8, 16) and texts.shape == (16, 16) and images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose([*(images**2).sum(1), *(texts**2).sum(1)], 1, rtol=1e-5)
    return retrieval_scores(images @ texts.T, np.array([names.index(row["image"]) for row in rows]))


def test_images_and_captions_retrieve_each_other(expected_scores):
    for direction in ("image_to_text", "text_to_image"):  # chance is 1 / 8
        assert expected_scores[f"{direction}_R@1"] >= 0.6 and expected_scores[f"{direction}_median_rank"] == 1


def test_evaluate_mode_reports_the_same_scores_as_the_python_api(searchable_workdir, expected_scores, capsys):
    assert small_run.run_main("--mode=evaluate", f"--workdir={searchable_workdir}", "--split=train") == 0
    assert "image_to_text_median_rank" in capsys.readouterr().out
    results = json.loads((searchable_workdir / "eval_train.json").read_text())
    assert {name: results["metrics"][name] for name in METRIC_NAMES} == pytest.approx(expected_scores)
    assert results["protocol"]["captions"] == 16


def test_training_logs_both_losses_and_validates_retrieval(searchable_workdir):
    rows = read_metrics(searchable_workdir / "metrics.jsonl")
    train = [row.values for row in rows if row.split == "train"]
    (val,) = [row.values for row in rows if row.split == "val"]
    assert val.keys() >= METRIC_NAMES | {"CIDEr-D", "loss"}
    assert train[-1]["contrastive_loss"] < 0.5 * train[0]["contrastive_loss"]
    assert train[-1]["loss"] < 0.5 * train[0]["loss"]
    assert train[0]["temperature"] == pytest.approx(0.07, rel=0.3) and train[-1]["temperature"] >= 0.01
    assert max(train[-1][f"{direction}_accuracy"] for direction in ("image_to_text", "text_to_image")) > 0.6


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_for_bit(searchable_workdir, tmp_path):
    workdir = Path(shutil.copytree(searchable_workdir, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "last" / str(list_saved_steps(workdir)[-1]))
    train_and_evaluate(read_spec(workdir), workdir)
    assert_same_state(workdir, searchable_workdir)


@pytest.mark.slow
def test_the_losses_of_a_run_do_not_depend_on_packing(distinct_images, tmp_path):
    losses = {}
    for packing in ("never", "blocks"):
        config = small_run.get_config().unlock()
        config.data.root = str(distinct_images)
        config.objective.contrastive_weight = 1.0
        config.model.text_encoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 32})
        config.model.joint_embedding.width = 16
        config.train.update({"steps": 4, "log_every": 1, "eval_every": 4, "packing": packing})
        train_and_evaluate(RunSpec.from_config(config), tmp_path / packing)
        rows = [row.values for row in read_metrics(tmp_path / packing / "metrics.jsonl") if row.split == "train"]
        losses[packing] = [[row["loss"], row["contrastive_loss"], row["tokens"]] for row in rows]
    assert len(losses["never"]) == 4
    np.testing.assert_allclose(losses["blocks"], losses["never"], rtol=0, atol=1e-5)


def test_resuming_cannot_remove_or_add_the_text_encoder(searchable_workdir, small_workdir):
    for workdir, weight in ((searchable_workdir, 0.0), (small_workdir, 0.5)):
        config = to_config_dict(read_spec(workdir))
        config.objective.contrastive_weight = weight
        with pytest.raises(ValueError, match=rf"objective\.contrastive_weight: .* -> {weight}"):
            start_experiment(RunSpec.from_config(config), epath.Path(workdir))
    config = to_config_dict(read_spec(searchable_workdir))
    config.objective.contrastive_weight = 0.25  # other positive weights are allowed
    unchanged = (searchable_workdir / "config.json").read_text()
    assert start_experiment(RunSpec.from_config(config), epath.Path(searchable_workdir)).description.has_joint_embedding
    (searchable_workdir / "config.json").write_text(unchanged)


def test_gradient_accumulation_is_rejected(tmp_path):
    config = small_run.get_config()
    config.objective.contrastive_weight = 0.5
    config.optimizer.grad_accum_steps = 2
    with pytest.raises(
        ValueError, match=r"optimizer\.grad_accum_steps=2 with config\.objective\.contrastive_weight=0\.5"
    ):
        start_experiment(RunSpec.from_config(config), epath.Path(tmp_path))


def test_embedding_without_a_text_encoder_is_rejected(small_workdir, tmp_path):
    captioner = caption_jax.load(str(small_workdir))
    for embed, item in ((captioner.embed_images, small_run.box_image()), (captioner.embed_texts, "a red box")):
        with pytest.raises(ValueError, match=r"--config\.objective\.contrastive_weight above 0"):
            embed([item])
        with pytest.raises(TypeError, match="takes a list of"):
            embed(item)


def test_workdirs_written_before_text_encoders_existed_are_read(small_workdir, tmp_path):
    workdir = Path(shutil.copytree(small_workdir, tmp_path / "old", ignore=shutil.ignore_patterns("checkpoints")))
    stored = json.loads((workdir / "model.json").read_text())
    assert stored.pop("text_encoder") is None
    (workdir / "model.json").write_text(json.dumps(stored))
    assert not read_description(workdir).has_text_encoder


def make_split(captions: list[list[str]]) -> Split:
    return Split("val", [Record(Path(f"{i}.png"), tuple(texts), i) for i, texts in enumerate(captions)])


def test_unreadable_images_and_their_captions_count_as_misses():
    split = make_split([["a", "b"], ["c"], [], ["d"]])  # the third image has no captions, so it is excluded
    texts = np.eye(4, dtype=np.float32)
    images = {0: texts[0] + texts[1], 1: texts[2], 2: texts[3], 3: texts[3]}
    assert split_retrieval(split, images, texts)["image_to_text_R@1"] == 1
    del images[3]
    scores = split_retrieval(split, images, texts)
    assert scores["image_to_text_R@1"] == pytest.approx(2 / 3) and scores["text_to_image_R@1"] == pytest.approx(3 / 4)
    assert split_retrieval(make_split([[], []]), {}, np.zeros((0, 4), np.float32)) == {}
