"""Imports and commands from the previous release still work, with a warning that gives the new name."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
from small_run import ROOT

import caption_jax
from caption_jax import metrics
from caption_jax.moved_modules import MOVED

FORMER_NAMES = {
    "caption_jax": caption_jax.__all__,
    "caption_jax.evaluation": [
        "Comparison",
        "DocumentFrequencies",
        "ImageScores",
        "ImageSetError",
        "Interval",
        "ResultsError",
        "check_image_set",
        "compare",
        "cross_tuned",
        "diversity",
        "intervals",
        "java_scores",
        "mean_over_runs",
        "protocol",
        "read_annotations",
        "read_results",
        "retrieval_scores",
        "score",
        "score_images",
        "seeded_halves",
        "write_results",
    ],
    "caption_jax.models": [
        "BatchNorm",
        "ContextMemory",
        "Decoder",
        "DecoderLayer",
        "EfficientNet",
        "ImageCaptioningModel",
        "ImageEncoder",
        "ImageFeatures",
        "JointEmbedding",
        "TextEncoder",
        "TextFeatures",
        "VARIANTS",
        "build_model",
        "depthwise_conv",
        "roberta_sizes",
    ],
    "caption_jax.pretrained": (
        ["EncoderSettings", "PretrainedEncoder", "WeightsError", "encoder_settings", "load_encoder_weights"]
    ),
    "caption_jax.retrieval.index": ["ImageIndex"],
    "caption_jax.retrieval.search": ["Searcher"],
}


@pytest.mark.parametrize("module", FORMER_NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_public_names_of_the_previous_release_still_exist(module):
    for name in FORMER_NAMES[module]:
        assert getattr(importlib.import_module(module), name) is not None, name


@pytest.mark.parametrize("former_name", MOVED)
def test_a_former_module_name_imports_the_moved_module(former_name):
    sys.modules.pop(former_name, None)
    with pytest.warns(DeprecationWarning, match=f"{former_name} is now {MOVED[former_name]}"):
        module = importlib.import_module(former_name)
    assert module is importlib.import_module(MOVED[former_name])
    assert module.__name__ == MOVED[former_name] == module.__spec__.name


def test_access_to_a_moved_attribute_warns():
    from caption_jax import evaluation, models

    with pytest.warns(DeprecationWarning, match=r"caption_jax\.evaluation\.score is now caption_jax\.metrics\.score"):
        assert evaluation.score is metrics.score
    with pytest.warns(DeprecationWarning, match=r"is now caption_jax\.ops\.depthwise\.depthwise_conv"):
        assert callable(models.depthwise_conv)
    with pytest.raises(AttributeError, match="no attribute 'scroe'"):
        evaluation.scroe  # noqa: B018


def test_import_statements_from_the_previous_release_warn():
    code = "from caption_jax.evaluation import score; from caption_jax.evaluation.ptb import tokenize_all"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("DeprecationWarning") == 2


def test_the_score_command_runs_under_its_former_name(tmp_path):
    results = [{"image_id": 1, "caption": "a dog runs"}]
    annotations = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": results}
    for name, content in (("results", results), ("annotations", annotations)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [str(tmp_path / "results.json"), str(tmp_path / "annotations.json")]
    command = [sys.executable, "-m", "caption_jax.evaluation", *files, "--no-java", "--samples=10"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0 and "BLEU-4" in process.stdout
    assert process.stderr.strip() == "python -m caption_jax.evaluation is now python -m caption_jax.metrics"
