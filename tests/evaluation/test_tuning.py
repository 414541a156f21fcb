"""`--mode=tune`: its choices, and that the printed flags reproduce the printed scores."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from etils import epath
from small_run import quick_compilation, run_main

import caption_jax
from caption_jax.evaluation.candidates import ImageCandidates
from caption_jax.evaluation.tuning import BASELINE, PENALTY_TUNED, Setting, tune
from caption_jax.metrics import read_results, score
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.workdir import read_spec

WORDS = ["a red dog runs on grass", "two cats sit by the door", "an old man rides a horse", "birds fly over blue water"]


def candidates_of(right_is_similar: bool) -> tuple[dict[int, list[str]], dict[int, ImageCandidates]]:
    """Forty images where beam search prefers a wrong caption by 0.3 and the right one is more, or less, similar.

    With the second exponent every caption is wrong.
    """
    references = {number: [f"{WORDS[number % 4]} {number}", WORDS[number % 4]] for number in range(40)}
    candidates = {}
    for number in references:
        right, wrong = WORDS[number % 4], WORDS[(number + 1) % 4]
        similarity = [0.1, 0.5] if right_is_similar else [0.5, 0.1]
        scores = np.array([[-1.0, -1.3], [-1.0, -1.3]], np.float32)
        candidates[number] = ImageCandidates(
            ((wrong, right), (wrong, wrong)), scores, np.array([similarity, similarity], np.float32)
        )
    return references, candidates


def test_a_helpful_similarity_gets_a_weight():
    references, candidates = candidates_of(right_is_similar=True)
    result = tune(references, candidates, [0.0, 0.7], 0.0)
    assert result.best == result.half_settings[0] == result.half_settings[1] == Setting(0.0, 1.0)  # 0.4 > 0.3 from 1 on
    gain = result.gains[BASELINE]["CIDEr-D"]
    assert gain.low > 0.5 and gain.p_value < 0.01 and result.gains[PENALTY_TUNED]["CIDEr-D"] == gain
    wrong = {number: candidates[number].texts[0][0] for number in references}
    right = {number: candidates[number].texts[0][1] for number in references}
    for setting, captions in (
        (Setting(0.0, 0.0), wrong),
        (Setting(0.0, 0.5), wrong),
        (Setting(0.0, 2.0), right),
    ):
        expected = score(references, captions)["CIDEr-D"]
        assert result.scores[2, result.settings.index(setting)] == pytest.approx(expected)
    assert result.metrics["tuned"] == pytest.approx(score(references, right))


def test_a_misleading_similarity_gets_no_weight():
    references, candidates = candidates_of(right_is_similar=False)
    del candidates[3]  # unreadable
    result = tune(references, candidates, [0.0, 0.7], 0.7)
    assert result.best.rerank_weight == 0
    assert result.gains[BASELINE]["CIDEr-D"].difference == 0 and result.gains[BASELINE]["CIDEr-D"].p_value == 1


@pytest.mark.slow
def test_the_printed_flags_reproduce_the_printed_scores(searchable_workdir, capsys):
    beam = [
        "--config.decode.num_beams=4",
        "--config.decode.max_length=5",
    ]  # so short that the captions differ in quality
    run_flags = ["--split=train", f"--workdir={searchable_workdir}"]
    assert run_main("--mode=tune", *run_flags, *beam) == 0
    output = capsys.readouterr().out
    result = json.loads((searchable_workdir / "tune_train.json").read_text())
    assert result["override"] in output and "p " in output and "train split: 8 images" in output
    assert {"--config.decode.method=beam", *beam} < set(shlex.split(result["override"]))
    cells = {(cell["alpha"], cell["rerank_weight"]): cell["CIDEr-D"] for cell in result["settings"]}
    assert len(cells) == len(result["settings"]) == 7 * 11
    assert max(cells.values()) == cells[tuple(result["chosen"].values())]
    assert result["protocol"]["decode"]["num_beams"] == 4 and "halves" in result["protocol"]
    references = (
        open_experiment(epath.Path(searchable_workdir), read_spec(searchable_workdir)).split("train").references
    )
    for name, system in (("tuned", "tuned"), ("penalty", PENALTY_TUNED)):
        captions = read_results(searchable_workdir / f"captions_train_{name}.json")
        assert score(references, captions)["CIDEr-D"] == pytest.approx(result["metrics"][system]["CIDEr-D"])

    def evaluated(*flags: str) -> float:
        assert run_main("--mode=evaluate", *run_flags, *flags) == 0
        return json.loads((searchable_workdir / "eval_train.json").read_text())["metrics"]["CIDEr-D"]

    plain = ["--config.decode.method=beam", *beam]
    assert cells[0.0, 0.0] < cells[0.0, 100.0] <= max(cells.values())
    assert evaluated(*shlex.split(result["override"])) == pytest.approx(max(cells.values()))
    assert evaluated(*plain, "--config.decode.rerank_weight=100") == pytest.approx(cells[0.0, 100.0])
    assert evaluated(*plain) == pytest.approx(cells[0.0, 0.0]) == pytest.approx(result["metrics"][BASELINE]["CIDEr-D"])


def test_a_captioner_reranks_by_similarity_if_configured(searchable_workdir, distinct_images):
    images = sorted((distinct_images / "images").glob("*.png"))
    captions_by_weight = []
    with quick_compilation():
        for weight in (0.0, 1e4):
            config = {"method": "beam", "num_beams": 4, "max_length": 10, "rerank_weight": weight}
            captioner = caption_jax.load(str(searchable_workdir), decode_config=config)
            captions_by_weight.append([caption.text for caption in captioner.caption(images)])
        vectors = captioner.embed_images(images)
        plain, ranked = ((vectors * captioner.embed_texts(texts)).sum(1) for texts in captions_by_weight)
    assert captions_by_weight[0] != captions_by_weight[1]
    assert (ranked >= plain - 1e-5).all()


def test_the_test_split_and_models_without_texts_are_rejected(searchable_workdir, small_workdir):
    with pytest.raises(ValueError, match="cannot tune on the test split"):
        run_main("--mode=tune", f"--workdir={searchable_workdir}", "--split=test")
    with pytest.raises(ValueError, match="is 1; tuning requires 2 or more"):
        run_main("--mode=tune", f"--workdir={searchable_workdir}", "--config.decode.num_beams=1")
    with pytest.raises(ValueError, match=r"config\.objective\.contrastive_weight above 0"):
        run_main("--mode=tune", f"--workdir={small_workdir}")
    rank = ["--config.decode.method=beam", "--config.decode.rerank_weight=1"]
    with pytest.raises(ValueError, match=r"config\.objective\.contrastive_weight above 0"):
        run_main("--mode=evaluate", f"--workdir={small_workdir}", *rank)
