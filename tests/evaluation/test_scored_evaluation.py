"""The results of an evaluation as JSON and as printed text."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_evaluation import CAPTIONS, REFERENCES, make_scored_evaluation

from caption_jax.evaluation.caption_scores import CaptionScores
from caption_jax.evaluation.evaluator import SplitOutputs
from caption_jax.evaluation.report.terminal import print_evaluation
from caption_jax.evaluation.scored_evaluation import as_json, score_evaluation
from caption_jax.metrics import diversity, java_metrics, score
from input_pipeline.records import Record, Split


def test_results_contain_scores_intervals_and_all_images():
    results = json.loads(json.dumps(as_json(make_scored_evaluation()), allow_nan=False))
    expected = score(REFERENCES, CAPTIONS)
    assert set(results["intervals"]) == set(expected)
    for name, (low, high) in results["intervals"].items():
        assert low <= expected[name] <= high
    first, second, third = results["images"]
    assert (first["image_id"], first["caption"], first["exact_match"]) == ("1.png", "a dog runs on the grass", 1.0)
    assert first["CIDEr-D"] > second["CIDEr-D"] and first["log_prob"] == -1.0
    assert (third["caption"], third["log_prob"], third["ROUGE-L"]) == ("", None, 0.0)
    assert results["diversity"] == diversity(CAPTIONS, ["a dog runs on the grass"])
    assert results["protocol"]["versions"]["jax"] and "1000 bootstrap samples" in results["protocol"]["intervals"]


def test_java_metrics_are_computed_in_evaluate_mode_only(monkeypatch):
    assert make_scored_evaluation().absent == dict.fromkeys(("METEOR", "SPICE"), "computed in evaluate mode only")

    class FakeMeteor:
        def compute_score(self, references, results):
            return 0.25, [0.25]

    monkeypatch.setattr(java_metrics, "unavailable_metrics", lambda: {"SPICE": "no parser"})
    monkeypatch.setattr(java_metrics, "_make_scorer", lambda name: FakeMeteor())
    scored_evaluation = make_scored_evaluation(java=True)
    assert scored_evaluation.metrics["METEOR"] == 0.25 and scored_evaluation.absent == {"SPICE": "no parser"}
    results = as_json(scored_evaluation)
    assert results["metrics"]["METEOR"] == 0.25 and "METEOR" not in results["intervals"]


def test_the_tokenizer_of_the_run_is_used_for_all_scores():
    evaluation = make_scored_evaluation().evaluation
    references = {image_id: ["一只狗在草地上跑"] for image_id in CAPTIONS}
    evaluation = dataclasses.replace(evaluation, captions=dict.fromkeys(CAPTIONS, "一只狗在跑"))
    scored_evaluation = score_evaluation(evaluation, references, ["一只狗在跑。"], tokenizer="characters")
    assert scored_evaluation.intervals["BLEU-1"].value > 0.5
    assert scored_evaluation.diversity["mean_length"] == 5 and scored_evaluation.diversity["novel"] == 0
    assert "made for English" in scored_evaluation.absent["METEOR"]
    split = Split("val", [Record(lambda: b"", tuple(captions), name) for name, captions in references.items()])
    outputs = SplitOutputs(split, evaluation.captions, {}, {"loss": 1.0})
    result = CaptionScores("characters").summarise(None, None, outputs)
    assert result.metrics["BLEU-1"] == scored_evaluation.intervals["BLEU-1"].value
    assert result.protocol["tokenization"].startswith("characters of CJK")


def test_a_cider_of_zero_is_explained(capsys):
    (image_id, caption), *_ = CAPTIONS.items()
    scored_evaluation = make_scored_evaluation({image_id: caption}, {image_id: REFERENCES[image_id]})
    print_evaluation(scored_evaluation)
    assert "note: CIDEr-D is always 0 for a single image" in capsys.readouterr().out
    assert as_json(scored_evaluation)["notes"] == list(scored_evaluation.notes) != []
    assert as_json(make_scored_evaluation())["notes"] == []


def test_results_are_printed(capsys):
    scored_evaluation = make_scored_evaluation()
    print_evaluation(scored_evaluation)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    interval = scored_evaluation.intervals["CIDEr-D"]
    assert f"[{interval.low:.4f}, {interval.high:.4f}]" in lines["CIDEr-D"]
    assert float(lines["novel"].split()[1]) == pytest.approx(scored_evaluation.diversity["novel"], abs=1e-4)
    assert "absent: computed in evaluate mode only" in lines["METEOR"] and "the file is empty" in lines["3.png:"]
