"""METEOR and SPICE: scores with Java, and reasons for missing metrics without it."""

from __future__ import annotations

import shutil

import pytest
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from caption_jax.metrics import java_metrics

REFERENCES = {1: ["A dog runs on the grass.", "a brown dog runs"], 2: ["two cats sit on a mat"]}
HYPOTHESES = {1: "a dog is running", 2: "two cats sitting"}


def test_metrics_are_absent_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores, absent = java_metrics.java_scores(REFERENCES, HYPOTHESES)
    assert scores == {} and set(absent) == {"METEOR", "SPICE"}
    assert all("Java" in reason for reason in absent.values())


def test_a_metric_is_absent_if_its_program_fails(monkeypatch):
    class FailingScorer:
        def compute_score(self, references, results):
            raise BrokenPipeError("the program exited")

    monkeypatch.setattr(java_metrics, "unavailable_metrics", lambda: {"SPICE": "not installed"})
    monkeypatch.setattr(java_metrics, "_make_scorer", lambda name: FailingScorer())
    scores, absent = java_metrics.java_scores(REFERENCES, HYPOTHESES)
    assert scores == {} and "the program exited" in absent["METEOR"] and absent["SPICE"] == "not installed"


@pytest.mark.java
@pytest.mark.skipif("METEOR" in java_metrics.unavailable_metrics(), reason="needs Java and pycocoevalcap's METEOR")
def test_meteor_on_our_tokens_matches_pycocoevalcap():
    scores, absent = java_metrics.java_scores({**REFERENCES, 3: ["a hat"]}, {**HYPOTHESES, 3: ""})
    assert "METEOR" not in absent and 0.1 < scores["METEOR"] < 0.9
    # pycocoevalcap with its Java tokenizer computes the same score.
    references, hypotheses = {**REFERENCES, 3: ["a hat"]}, {**HYPOTHESES, 3: "hats, a lot of"}
    tokenizer = PTBTokenizer()
    tokens = [
        tokenizer.tokenize({image: [{"caption": text} for text in texts] for image, texts in captions.items()})
        for captions in (references, {image: [text] for image, text in hypotheses.items()})
    ]
    expected = Meteor().compute_score(*tokens)[0]
    assert java_metrics.java_scores(references, hypotheses)[0]["METEOR"] == pytest.approx(expected, abs=1e-9)
    perfect, _ = java_metrics.java_scores(REFERENCES, {1: "a brown dog runs", 2: "Two cats sit on a mat!"})
    assert perfect["METEOR"] > 0.9 > scores["METEOR"]
