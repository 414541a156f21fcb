"""`--mode=tune`: the selected settings, and flags that reproduce the printed scores."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from etils import epath
from small_run import run_main

import caption_jax
from caption_jax.evaluation.candidates import ImageCandidates
from caption_jax.evaluation.tuning import BASELINE, CONSENSUS_TUNED, PENALTY_TUNED, SIMILARITY_TUNED, Setting, tune
from caption_jax.metrics import read_results, score
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.workdir import read_spec

CAPTIONS = [
    "a red dog runs on grass",
    "two cats sit by the door",
    "an old man rides a horse",
    "birds fly over blue water",
]


def make_candidates(correct_is_similar: bool) -> tuple[dict[int, list[str]], dict[int, ImageCandidates]]:
    """Returns references and candidates of 40 images.

    The score of the incorrect caption is 0.3 higher. The similarity of the correct caption is 0.4 higher, or 0.4 lower
    if not `correct_is_similar`. With the second length penalty exponent, both candidates are incorrect.
    """
    references = {image: [f"{CAPTIONS[image % 4]} {image}", CAPTIONS[image % 4]] for image in range(40)}
    candidates = {}
    for image in references:
        correct, incorrect = CAPTIONS[image % 4], CAPTIONS[(image + 1) % 4]
        similarity = [0.1, 0.5] if correct_is_similar else [0.5, 0.1]
        scores = np.array([[-1.0, -1.3], [-1.0, -1.3]], np.float32)
        candidates[image] = ImageCandidates(
            ((incorrect, correct), (incorrect, incorrect)),
            scores,
            np.array([similarity, similarity], np.float32),
            np.zeros((2, 2), np.float32),
        )
    return references, candidates


def test_tuning_selects_a_weight_if_similarity_helps():
    references, candidates = make_candidates(correct_is_similar=True)
    result = tune(references, candidates, [0.0, 0.7], 0.0)
    assert result.best == result.half_settings[0] == result.half_settings[1] == Setting(0.0, 1.0)  # 1.0 * 0.4 > 0.3
    gain = result.gains[BASELINE]["CIDEr-D"]
    assert gain.low > 0.5 and gain.p_value < 0.01 and result.gains[PENALTY_TUNED]["CIDEr-D"] == gain
    incorrect = {image: candidates[image].texts[0][0] for image in references}
    correct = {image: candidates[image].texts[0][1] for image in references}
    for setting, captions in (
        (Setting(0.0, 0.0), incorrect),
        (Setting(0.0, 0.5), incorrect),
        (Setting(0.0, 2.0), correct),
    ):
        expected = score(references, captions)["CIDEr-D"]
        assert result.scores[2, result.settings.index(setting)] == pytest.approx(expected)
    assert result.metrics["tuned"] == pytest.approx(score(references, correct))


def test_tuning_selects_no_weight_if_similarity_misleads():
    references, candidates = make_candidates(correct_is_similar=False)
    del candidates[3]  # unreadable
    result = tune(references, candidates, [0.0, 0.7], 0.7)
    assert result.best.rerank_weight == 0
    assert result.gains[BASELINE]["CIDEr-D"].difference == 0 and result.gains[BASELINE]["CIDEr-D"].p_value == 1


@pytest.mark.parametrize("rerank_weights", [(0.0,), (0.0, 1.0)])
def test_tuning_selects_a_consensus_weight_if_consensus_helps(rerank_weights):
    references, candidates = make_candidates(correct_is_similar=False)
    expected = np.array([[0.0, 0.4], [0.0, 0.4]], np.float32)
    candidates = {image: replace(found, consensus=expected) for image, found in candidates.items()}
    result = tune(references, candidates, [0.0, 0.7], 0.0, rerank_weights=rerank_weights)
    assert result.best == Setting(0.0, 0.0, 1.0) and result.half_settings == (result.best, result.best)
    assert result.gains[PENALTY_TUNED]["CIDEr-D"].low > 0.5
    others = {SIMILARITY_TUNED, CONSENSUS_TUNED} if len(rerank_weights) > 1 else set()
    assert set(result.gains) == {BASELINE, PENALTY_TUNED} | others
    correct = {image: candidates[image].texts[0][1] for image in references}
    assert result.captions["tuned"] == correct
    if others:
        assert result.captions[CONSENSUS_TUNED] == correct
        assert result.gains[SIMILARITY_TUNED]["CIDEr-D"].low > 0.5


@pytest.mark.slow
def test_a_model_without_a_joint_embedding_is_tuned_by_consensus(small_workdir, tmp_path, capsys):
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    flags = [f"--workdir={workdir}", "--split=train", "--config.decode.num_beams=3", "--config.decode.max_length=6"]
    assert run_main("tune", *flags) == 0
    output = capsys.readouterr().out
    assert "consensus_weight (across)" in output and "rerank_weight (across)" not in output
    result = json.loads((workdir / "tune_train.json").read_text())
    assert len(result["settings"]) == 7 * 9 and result["chosen"]["rerank_weight"] == 0
    assert run_main("evaluate", f"--workdir={workdir}", "--split=train", *shlex.split(result["override"])) == 0
    evaluation = json.loads((workdir / "eval_train.json").read_text())
    best = max(setting["CIDEr-D"] for setting in result["settings"])
    assert evaluation["metrics"]["CIDEr-D"] == pytest.approx(best)


@pytest.mark.slow
def test_the_printed_flags_reproduce_the_printed_scores(searchable_workdir, capsys):
    # With such short captions, the settings differ in quality.
    beam = ["--config.decode.num_beams=4", "--config.decode.max_length=5"]
    run_flags = ["--split=train", f"--workdir={searchable_workdir}"]
    assert run_main("--mode=tune", *run_flags, *beam) == 0
    output = capsys.readouterr().out
    result = json.loads((searchable_workdir / "tune_train.json").read_text())
    assert result["override"] in output and "p " in output and "train split: 8 images" in output
    assert {"--config.decode.method=beam", *beam} < set(shlex.split(result["override"]))
    keys = list(result["chosen"])
    assert keys == ["alpha", "rerank_weight", "consensus_weight"]
    cider = {tuple(setting[key] for key in keys): setting["CIDEr-D"] for setting in result["settings"]}
    assert len(cider) == len(result["settings"]) == 7 * 11 * 9
    assert f"{CONSENSUS_TUNED} " in output and "by alpha (down) and consensus_weight (across)" in output
    assert max(cider.values()) == cider[tuple(result["chosen"].values())]
    assert result["protocol"]["decode"]["num_beams"] == 4 and "halves" in result["protocol"]
    references = (
        open_experiment(epath.Path(searchable_workdir), read_spec(searchable_workdir)).split("train").references
    )
    for name, system in (("tuned", "tuned"), ("penalty", PENALTY_TUNED)):
        captions = read_results(searchable_workdir / f"captions_train_{name}.json")
        assert score(references, captions)["CIDEr-D"] == pytest.approx(result["metrics"][system]["CIDEr-D"])

    def evaluate(*flags: str) -> float:
        assert run_main("--mode=evaluate", *run_flags, *flags) == 0
        return json.loads((searchable_workdir / "eval_train.json").read_text())["metrics"]["CIDEr-D"]

    decode_flags = ["--config.decode.method=beam", *beam]
    assert cider[0.0, 0.0, 0.0] < cider[0.0, 100.0, 0.0] <= max(cider.values())
    assert evaluate(*shlex.split(result["override"])) == pytest.approx(max(cider.values()))
    assert evaluate(*decode_flags, "--config.decode.rerank_weight=100") == pytest.approx(cider[0.0, 100.0, 0.0])
    weights = ["--config.decode.rerank_weight=5", "--config.decode.consensus_weight=2"]
    assert evaluate(*decode_flags, *weights) == pytest.approx(cider[0.0, 5.0, 2.0])
    assert (
        evaluate(*decode_flags)
        == pytest.approx(cider[0.0, 0.0, 0.0])
        == pytest.approx(result["metrics"][BASELINE]["CIDEr-D"])
    )


@pytest.mark.slow
def test_a_captioner_reranks_by_similarity_if_configured(searchable_workdir, distinct_images):
    images = sorted((distinct_images / "images").glob("*.png"))
    captions_by_weight = []
    for weight in (0.0, 1e4):
        config = {"method": "beam", "num_beams": 4, "max_length": 10, "rerank_weight": weight}
        captioner = caption_jax.load(str(searchable_workdir), decode_config=config)
        captions_by_weight.append([caption.text for caption in captioner.caption(images)])
    vectors = captioner.embed_images(images)
    default, reranked = ((vectors * captioner.embed_texts(captions)).sum(1) for captions in captions_by_weight)
    assert captions_by_weight[0] != captions_by_weight[1]
    assert (reranked >= default - 1e-5).all()


def test_invalid_tuning_requests_are_rejected(searchable_workdir, small_workdir):
    with pytest.raises(ValueError, match="cannot tune on the test split"):
        run_main("--mode=tune", f"--workdir={searchable_workdir}", "--split=test")
    with pytest.raises(ValueError, match="is 1; tuning requires 2 or more"):
        run_main("--mode=tune", f"--workdir={searchable_workdir}", "--config.decode.num_beams=1")
    rerank_flags = ["--config.decode.method=beam", "--config.decode.rerank_weight=1"]
    with pytest.raises(ValueError, match=r"config\.objective\.contrastive_weight above 0"):
        run_main("--mode=evaluate", f"--workdir={small_workdir}", *rerank_flags)
