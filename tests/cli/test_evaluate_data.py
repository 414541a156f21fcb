"""`--mode=evaluate --data=FOLDER`, which evaluates a run on another dataset."""

from __future__ import annotations

import json
import shutil

import pytest
from small_run import box_image, run_main

from caption_jax.errors import ConfigError, DataError, MissingFileError
from caption_jax.evaluation.external_data import check_context
from caption_jax.metrics import read_results
from caption_jax.parameters import stored_dtypes

EVALUATE = "--mode=evaluate"


@pytest.fixture
def holiday(tmp_path):
    """A folder named "holiday" with three images, and captions in the format of Flickr8k."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    lines = []
    for name, colour, side in (("a.png", "red", "left"), ("b.png", "blue", "right"), ("c.png", "green", "left")):
        box_image(colour, side).save(folder / name)
        lines += [f"{name}#0\tA {colour} box on the {side}.", f"{name}#1\tone {colour} box"]
    (folder / "token.txt").write_text("\n".join(lines))
    return folder


def test_all_images_are_evaluated_and_results_are_named_after_the_folder(small_workdir, holiday, capsys):
    assert run_main(EVALUATE, f"--workdir={small_workdir}", f"--data={holiday}") == 0
    output = capsys.readouterr().out
    assert f"captions: {holiday / 'token.txt'}" in output
    assert "all split of holiday (token.txt): 3 images (real)" in output
    results = json.loads((small_workdir / "eval_holiday_all.json").read_text())
    assert results["split"] == "all" and results["protocol"]["data"] == "holiday (token.txt)"
    assert results["protocol"]["images"] == 3 and results["protocol"]["captions"] == 6
    assert "novel" not in results["diversity"]  # requires the training captions of the dataset
    captions = read_results(small_workdir / "captions_holiday_all.json")
    assert list(captions) == ["a.png", "b.png", "c.png"] and all("box" in caption for caption in captions.values())
    assert "holiday (token.txt)" in (small_workdir / "report_holiday_all.html").read_text()


@pytest.mark.parametrize(
    ("images", "name"), [("real", "test"), pytest.param("blank", "test_blank", marks=pytest.mark.slow)]
)
def test_a_copy_of_the_training_data_has_the_same_scores(small_workdir, small_images, tmp_path, images, name):
    copy = shutil.copytree(small_images, tmp_path / "copy")
    arguments = [EVALUATE, f"--workdir={small_workdir}", "--split=test", f"--images={images}"]
    assert run_main(*arguments) == run_main(*arguments, f"--data={copy}") == 0
    expected = json.loads((small_workdir / f"eval_{name}.json").read_text())
    actual = json.loads((small_workdir / f"eval_copy_{name}.json").read_text())
    assert actual["metrics"] == expected["metrics"] and actual["images"] == expected["images"]


def test_the_last_weights_are_evaluated_on_request(small_workdir, tmp_path, capsys):
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    shutil.rmtree(workdir / "model-160")  # evaluations of the best weights would fail
    assert run_main(EVALUATE, f"--workdir={workdir}", "--split=val", "--checkpoint=last") == 0
    best, last = (json.loads((workdir / f"eval_{name}.json").read_text()) for name in ("val", "val_last"))
    assert last["step"] == 160 and [row["image_id"] for row in last["images"]] == [
        row["image_id"] for row in best["images"]
    ]
    assert (workdir / "report_val_last.html").is_file()


@pytest.mark.slow
def test_weights_in_int8_are_evaluated_on_request(small_workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_dtypes, "MIN_ELEMENTS", 64)  # all kernels of this model are small
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    for dtype in ("float32", "int8"):
        assert run_main(EVALUATE, f"--workdir={workdir}", "--split=val", f"--weights={dtype}") == 0
    full, small = (json.loads((workdir / f"eval_val_{dtype}.json").read_text()) for dtype in ("float32", "int8"))
    assert small["protocol"]["weights"] == "int8" and "weights" not in full["protocol"]
    assert small["metrics"]["loss"] != full["metrics"]["loss"] == pytest.approx(small["metrics"]["loss"], abs=0.1)
    folder = tmp_path / "exported"
    assert run_main("export", f"--workdir={workdir}", "--to=folder", "--weights=int8", f"--out={folder}") == 0
    card = (folder / "README.md").read_text()
    assert "weights int8" in card and "### val" in card and card.count("### ") == 1  # not the scores in float32


def test_missing_splits_caption_files_and_folders_are_reported(small_workdir, holiday, tmp_path):
    arguments = [EVALUATE, f"--workdir={small_workdir}"]
    with pytest.raises(DataError, match="no split 'val'; the dataset has train"):
        run_main(*arguments, f"--data={holiday}", "--split=val")
    (holiday / "token.txt").rename(holiday / "words.txt")
    with pytest.raises(
        MissingFileError, match=r"no caption file in .*; expected one of captions\.csv.*captions=words\.txt$"
    ):
        run_main(*arguments, f"--data={holiday}")
    with pytest.raises(MissingFileError, match=r"no such folder: .*none"):
        run_main(*arguments, f"--data={tmp_path / 'none'}")


def test_the_data_flag_requires_evaluate_mode_and_rejects_context(small_workdir, holiday, capsys):
    assert run_main("--mode=tune", f"--workdir={small_workdir}", f"--data={holiday}") == 2
    assert "--data" in capsys.readouterr().err
    check_context(0, "")
    check_context(2, "none")
    with pytest.raises(ConfigError, match="--context=none"):
        check_context(2, "")
