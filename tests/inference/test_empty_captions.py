"""A model that emits only </s> has empty captions, which every command prints, scores and stores as empty texts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from etils import epath

import caption_jax
from caption_jax.evaluation.sample_summaries import ATTENTION_TAG, CAPTIONS_TAG, SampleSummaries
from caption_jax.files import json_line
from caption_jax.metrics.__main__ import main as run_scorer
from caption_jax.retrieval.index import ImageIndex
from caption_jax.runs.artifact import write_artifact, write_pointer
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import Weights
from caption_jax.specs import MeshSpec
from input_pipeline.special_tokens import EOS


@pytest.fixture
def silent_workdir(searchable_workdir, tmp_path) -> Path:
    """The workdir of a model with a text encoder whose best weights emit </s> first."""
    ignored = shutil.ignore_patterns("index")  # of another model
    silent = Path(shutil.copytree(searchable_workdir, tmp_path / "silent", ignore=ignored))
    model = read_model(silent)
    variables = jax.tree.map(np.array, model.weights.variables)
    variables["params"]["decoder"]["output_bias"][EOS] = 1e4
    workdir = epath.Path(silent)
    write_pointer(workdir, write_artifact(workdir, model.description, Weights(variables, model.weights.step)))
    return silent


def test_a_captioner_returns_empty_captions(silent_workdir):
    for decode in ({"method": "greedy"}, {"method": "beam"}, {"method": "sample"}):
        captioner = caption_jax.load(silent_workdir, decode_config=decode)
        (caption,) = captioner.caption([small_run.box_image()])
        assert (caption.text, caption.tokens) == ("", ())
        assert caption.log_prob == pytest.approx(0, abs=1e-3)


def test_caption_mode_prints_empty_captions(silent_workdir, distinct_images, capsys):
    image = distinct_images / "images" / "00.png"
    assert small_run.run_main("--mode=caption", f"--workdir={silent_workdir}", image) == 0
    assert capsys.readouterr().out == f"{image}\t\n"
    assert small_run.run_main("--mode=caption", "--format=jsonl", f"--workdir={silent_workdir}", image) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["path"], line["caption"], line["tokens"]) == (str(image), "", [])


def test_empty_captions_are_evaluated_and_reported(silent_workdir, capsys):
    assert small_run.run_main("--mode=evaluate", "--split=val", f"--workdir={silent_workdir}") == 0
    assert "\t\n" in capsys.readouterr().out
    results = json.loads((silent_workdir / "eval_val.json").read_text())
    assert [row["caption"] for row in results["images"]] == ["", ""]
    assert results["metrics"]["CIDEr-D"] == results["metrics"]["BLEU-4"] == 0
    assert "(empty)" in (silent_workdir / "report_val.html").read_text()
    captions = json.loads((silent_workdir / "captions_val.json").read_text())
    assert [entry["caption"] for entry in captions] == ["", ""]


def test_empty_captions_are_drawn_in_sample_summaries(silent_workdir):
    class Monitor:
        def images(self, step, summaries):
            self.summaries = summaries

    model, monitor = read_model(silent_workdir), Monitor()
    spec = dataclasses.replace(model.description.spec, mesh=MeshSpec(data=1))
    experiment, variables = open_experiment(epath.Path(silent_workdir), spec), model.weights.variables
    SampleSummaries(experiment, experiment.splits["val"]).write(monitor, variables, 1)
    assert {name: len(cards) for name, cards in monitor.summaries.items()} == {CAPTIONS_TAG: 1, ATTENTION_TAG: 1}


def test_empty_captions_are_indexed_and_searched(silent_workdir, distinct_images, capsys):
    images = distinct_images / "images"
    assert small_run.run_main("--mode=index", f"--workdir={silent_workdir}", images) == 0
    index = ImageIndex(silent_workdir / "index")
    assert {entry.caption for entry in index.entries()} == {""}
    capsys.readouterr()
    assert small_run.run_main("--mode=search", f"--workdir={silent_workdir}", "--query=a red box", "--top=2") == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert small_run.run_main("--mode=search", f"--workdir={silent_workdir}", f"--query={images / '00.png'}") == 0


def test_empty_captions_are_scored(tmp_path, capsys):
    references = {1: ["a red box"], 2: ["a dog"]}
    assert 0 < caption_jax.score(references, {1: "", 2: "a dog"})["BLEU-1"] < 1
    assert caption_jax.score(references, {1: "", 2: ""})["CIDEr-D"] == 0
    annotations = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"id": i, "image_id": i, "caption": texts[0]} for i, texts in references.items()],
    }
    (tmp_path / "references.json").write_text(json_line(annotations))
    for captions in ({1: "", 2: "a dog"}, {1: "", 2: ""}):
        rows = [{"image_id": i, "caption": caption} for i, caption in captions.items()]
        (tmp_path / "results.json").write_text(json_line(rows))
        arguments = [str(tmp_path / "results.json"), str(tmp_path / "references.json"), "--no-java", "--samples=20"]
        assert run_scorer(arguments) == 0
        assert "CIDEr-D" in capsys.readouterr().out
