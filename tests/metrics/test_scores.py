"""Corpus scores: names, ranges, and dependencies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from caption_jax.metrics import (
    DocumentFrequencies,
    ImageSetError,
    check_image_set,
    compare,
    cross_tune,
    diversity,
    intervals,
    java_scores,
    mean_over_runs,
    protocol,
    score,
    score_images,
    split_by_hash,
    write_results,
)
from caption_jax.metrics.scores import explain_zero_cider
from input_pipeline.errors import DataError

REFERENCES = {
    1: ["A dog runs on the grass.", "a brown dog runs"],
    2: ["two cats sit on a mat", "Two cats."],
    "three": ["a man's hat"],
}


def test_perfect_captions_have_the_best_scores():
    scores = score(REFERENCES, {1: "a brown dog runs", 2: "two cats sit on a mat!", "three": "A man's hat"})
    assert scores["exact_match"] == 1
    assert scores["BLEU-4"] == pytest.approx(1, abs=1e-3)
    assert scores["ROUGE-L"] == pytest.approx(1)
    assert scores["CIDEr-D"] > 2


def test_scores_have_the_expected_names_and_ranges():
    scores = score(REFERENCES, {1: "a dog", 2: "", "three": "man"})
    assert list(scores)[:6] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert all(isinstance(value, float) for value in scores.values())
    assert 0 < scores["BLEU-1"] < 1 and 0 < scores["ROUGE-L"] < 1 and scores["exact_match"] == 0


def test_the_order_of_images_does_not_matter():
    hypotheses = {"three": "a hat", 2: "two cats", 1: "a dog runs"}
    assert score(REFERENCES, hypotheses) == score(REFERENCES, dict(reversed(hypotheses.items())))


def test_invalid_arguments_are_rejected():
    with pytest.raises(ImageSetError, match="1 without a result: 'three'"):
        score(REFERENCES, {1: "", 2: ""})
    with pytest.raises(ValueError, match="no images"):
        score({}, {})
    with pytest.raises(ValueError, match="no reference caption; the first is 5"):
        score({5: []}, {5: "a"})


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({1: "a dog"}, {1: "a dog"}, r"references\[1\] is 'a dog'; it must be a list of captions"),
        ({1: ["a dog"]}, {1: ["a dog"]}, r"hypotheses\[1\] is \['a dog'\]; a caption must be a string"),
        ({1: ["a dog", None]}, {1: "a dog"}, r"references\[1\] contains None; a caption must be a string"),
        ([["a dog"]], {0: "a dog"}, "references must be a mapping .* not a list"),
        ({0: ["a dog"]}, ["a dog"], r"hypotheses must be a mapping .* such as \{1: 'a dog'\}, not a list"),
    ],
)
def test_arguments_of_other_types_are_rejected(references, hypotheses, message):
    with pytest.raises(TypeError, match=message):
        score(references, hypotheses)


SCORES = score_images({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: "a cat"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diversity({1: "a dog"}, "a dog runs"), "training_captions must be a list of captions.* not a str"),
        (lambda: diversity({1: "a dog"}, {1: "a dog"}), "training_captions must be a list of captions.* not a dict"),
        (lambda: diversity({1: "a dog"}, ["a dog", 3]), "training_captions contains 3; a caption must be a string"),
        (lambda: diversity(["a dog"]), "hypotheses must be a mapping"),
        (lambda: diversity({1: ["a dog"]}), r"hypotheses\[1\] is \['a dog'\]; a caption must be a string"),
        (lambda: score({1: ["a"]}, {1: "a"}, {"images": 1}), "frequencies must be DocumentFrequencies"),
        (lambda: intervals({"CIDEr-D": 1.0}), r"scores must be ImageScores \(the result of score_images\), not a dict"),
        (lambda: compare(SCORES, {"CIDEr-D": 1.0}), "second must be ImageScores"),
        (lambda: mean_over_runs([{"CIDEr-D": 1.0}]), "each run must be ImageScores"),
        (lambda: check_image_set("abc", {"a": ""}), "references must be a collection of image ids"),
        (lambda: split_by_hash("abc"), "image_ids must be a collection of image ids"),
        (lambda: cross_tune([["a"]], ([0], []), ([1.0], [1.0])), r"captions\[0\] must be a mapping"),
        (lambda: write_results("captions.json", ["a dog"]), "captions must be a mapping"),
        (lambda: DocumentFrequencies.from_references(["a dog"]), "references of an image must be a list of captions"),
        (lambda: DocumentFrequencies.from_references({1: ["a dog"]}), r"pass references\.values\(\)"),
        (lambda: java_scores({1: "a dog"}, {1: "a dog"}), r"references\[1\] is 'a dog'"),
    ],
)
def test_other_functions_reject_arguments_of_other_types(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_generators_of_training_captions_are_accepted():
    assert diversity({1: "a dog", 2: "a cat"}, (text for text in ["A dog."]))["novel"] == 0.5


def test_a_cider_of_zero_is_explained_if_the_captions_match():
    single = score_images({1: ["a red dog"]}, {1: "a red dog"})
    explanation = explain_zero_cider(single)
    assert explanation.startswith("CIDEr-D is always 0 for a single image") and "log(1/1) = 0" in explanation
    same = score_images({1: ["a dog"], 2: ["a dog"]}, {1: "a dog", 2: "a dog"})
    assert "the references of all 2 images" in explain_zero_cider(same) and "log(2/2) = 0" in explain_zero_cider(same)
    assert explain_zero_cider(SCORES) == ""
    assert explain_zero_cider(score_images({1: ["a dog"], 2: ["a cat"]}, {1: "", 2: "fish"})) == ""
    frequencies = DocumentFrequencies.from_references([["a dog"], ["fish"]])
    assert explain_zero_cider(single, frequencies) == ""


def test_the_protocol_records_the_tokenization():
    assert set(protocol()) >= {"tokenization", "metrics"}


def test_scoring_requires_neither_jax_nor_java():
    code = (
        "import sys, subprocess; subprocess.Popen = None\n"
        "from caption_jax.metrics import score; score({1: ['a dog']}, {1: 'a dog'})\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'tensorflow', 'ml_collections')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


@pytest.mark.parametrize("references", [{1: ["x" * 10_001]}, {1: ["a dog"]}])
def test_captions_of_extreme_length_are_rejected(references):
    with pytest.raises(DataError, match=r"\[1\] (contains|is) a caption of 10,001 characters, more than the limit"):
        score(references, {1: "x" * 10_001})
