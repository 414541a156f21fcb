"""The command with only the packages of the base installation, from another folder."""

from __future__ import annotations

import json

import base_install
import pytest
from wrong_usages import read_error


def test_score_works(tmp_path):
    (tmp_path / "references.csv").write_text("image,caption\na.jpg,a dog runs\nb.jpg,two cats sit\n")
    results = [{"image_id": "a.jpg", "caption": "a dog runs"}, {"image_id": "b.jpg", "caption": "two cats sit"}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    process = base_install.run_command("score", "references.csv", "results.json", "--samples=10", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert any(line.split()[:2] == ["BLEU-1", "1.0000"] for line in process.stdout.splitlines())


def test_training_names_the_extra_in_one_line(tmp_path):
    process = base_install.run_command("train", "--config=shapes", cwd=tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: training needs packages that are not installed (grain, ") and "'.[train]'" in line
    assert not (tmp_path / "runs" / "shapes" / "config.json").exists()


@pytest.mark.slow
def test_captioning_works(small_workdir, small_images, tmp_path):
    image = small_images / "images" / "00.png"
    process = base_install.run_command("caption", f"--workdir={small_workdir}", image, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{image}\t") and "box" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["evaluate", "--workdir={workdir}"], "train"),
        (["tune", "--workdir={workdir}", "--config.decode.method=beam", "--config.decode.num_beams=2"], "train"),
        (["plan", "--workdir={workdir}", "--topology=v5e:2x2"], "tpu"),
        (["caption", "--workdir=gs://bucket/run", "photo.png"], "gcs"),
        (["caption", "--workdir=s3://bucket/run", "photo.png"], "s3"),
    ],
)
def test_each_missing_extra_is_named_in_one_line(arguments, extra, small_workdir, tmp_path):
    arguments = [argument.format(workdir=small_workdir) for argument in arguments]
    process = base_install.run_command(*arguments, cwd=tmp_path)
    assert process.returncode == 1
    line = read_error(process.stderr)
    assert line.startswith("error: ") and line.endswith(f"'caption-jax[{extra}]', or '.[{extra}]' in a checkout")
