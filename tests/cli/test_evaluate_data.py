"""`--mode=evaluate --data=FOLDER`: evaluates a run on images of another data set."""

from __future__ import annotations

import json
import shutil

import pytest
from small_run import box_image, run_main

from caption_jax.errors import ConfigError, DataError, MissingFileError
from caption_jax.evaluation.external_data import check_context
from caption_jax.metrics import read_results

EVALUATE = "--mode=evaluate"


@pytest.fixture
def holiday(tmp_path):
    """A folder with three photographs and captions in the format of Flickr8k."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    lines = []
    for name, colour, side in (("a.png", "red", "left"), ("b.png", "blue", "right"), ("c.png", "green", "left")):
        box_image(colour, side).save(folder / name)
        lines += [f"{name}#0\tA {colour} box on the {side}.", f"{name}#1\tone {colour} box"]
    (folder / "token.txt").write_text("\n".join(lines))
    return folder


def test_all_images_of_the_folder_are_scored_under_its_name(small_workdir, holiday, capsys):
    assert run_main(EVALUATE, f"--workdir={small_workdir}", f"--data={holiday}") == 0
    output = capsys.readouterr().out
    assert f"captions: {holiday / 'token.txt'}" in output
    assert "all split of holiday (token.txt): 3 images (real)" in output
    results = json.loads((small_workdir / "eval_holiday_all.json").read_text())
    assert results["split"] == "all" and results["protocol"]["data"] == "holiday (token.txt)"
    assert results["protocol"]["images"] == 3 and results["protocol"]["captions"] == 6
    assert "novel" not in results["diversity"]  # the training captions belong to another data set
    captions = read_results(small_workdir / "captions_holiday_all.json")
    assert list(captions) == ["a.png", "b.png", "c.png"] and all("box" in caption for caption in captions.values())
    assert "holiday (token.txt)" in (small_workdir / "report_holiday_all.html").read_text()


def test_a_split_of_a_copied_folder_has_the_same_scores(small_workdir, small_images, tmp_path):
    copy = shutil.copytree(small_images, tmp_path / "copy")
    for images in ("real", "blank"):
        evaluate = [EVALUATE, f"--workdir={small_workdir}", "--split=test", f"--images={images}"]
        assert run_main(*evaluate) == run_main(*evaluate, f"--data={copy}") == 0
    for name in ("test", "test_blank"):
        expected = json.loads((small_workdir / f"eval_{name}.json").read_text())
        copied = json.loads((small_workdir / f"eval_copy_{name}.json").read_text())
        assert expected["metrics"] == copied["metrics"] and expected["images"] == copied["images"]


def test_missing_data_are_reported(small_workdir, holiday, tmp_path):
    evaluate = [EVALUATE, f"--workdir={small_workdir}"]
    with pytest.raises(DataError, match="no split 'val'; the dataset has train"):
        run_main(*evaluate, f"--data={holiday}", "--split=val")
    (holiday / "token.txt").rename(holiday / "words.txt")
    with pytest.raises(MissingFileError, match=r"no caption file in .*; expected one of captions\.csv"):
        run_main(*evaluate, f"--data={holiday}")
    with pytest.raises(MissingFileError, match=r"no such folder: .*none"):
        run_main(*evaluate, f"--data={tmp_path / 'none'}")


def test_other_data_require_evaluate_without_context(small_workdir, holiday, capsys):
    assert run_main("--mode=tune", f"--workdir={small_workdir}", f"--data={holiday}") == 2
    assert "--data" in capsys.readouterr().err
    check_context(0, "")
    check_context(2, "none")
    with pytest.raises(ConfigError, match="--context=none"):
        check_context(2, "")
