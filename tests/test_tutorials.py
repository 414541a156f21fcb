"""The commands and examples of README and the tutorials work as written, on a few images and with short runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import COLOURS, ROOT, SIDES, box_image
from tutorials import TUTORIALS, install_command, run_commands, run_tutorial

NEEDS_OTHER_MACHINES = {"coco_tpu.md"}  # TPUs, a bucket and COCO
SHORT_RUN = ("--config.train.steps=4", "--config.data.feature_cache.views=1", "--config.train.sample_images=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files that the tutorials mention."""
    folder = tmp_path_factory.mktemp("tutorials")
    images = folder / "my_photographs" / "images"
    images.mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(24):
        colour, side = list(COLOURS)[number % 4], SIDES[number // 4 % 2]
        box_image(colour, side).save(images / f"{number:02d}.jpg")
        lines += [f"{number:02d}.jpg,a {colour} box on the {side}", f"{number:02d}.jpg,a box that is {colour}"]
    (folder / "my_photographs" / "captions.csv").write_text("\n".join(lines) + "\n")
    for name in ("folder", "collection", "site/images"):
        (folder / name).mkdir(parents=True)
        for image in ("beach.jpg", "dog.jpg"):
            shutil.copy(images / "03.jpg", folder / name / image)
    shutil.copy(images / "05.jpg", folder / "photo.jpg")
    write_annotations(folder)
    return folder


def write_annotations(folder: Path) -> None:
    """Writes references.json, results.json and baseline.json with three images."""
    captions = {1: "a brown dog runs", 2: "a child on a beach", 3: "two boats in a harbour"}
    annotations = [{"image_id": key, "caption": text} for key, text in captions.items()]
    images = [{"id": key, "file_name": f"{key}.jpg"} for key in captions]
    (folder / "references.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "results.json").write_text(json.dumps(annotations))
    baseline = [{"image_id": key, "caption": "a dog on a beach"} for key in captions]
    (folder / "baseline.json").write_text(json.dumps(baseline))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return install_command(tmp_path_factory.mktemp("command") / "bin", SHORT_RUN)


@pytest.mark.long
def test_photographs_are_trained_on_captioned_and_described_for_a_web_site(folder, environment):
    assert "photo.jpg\t" in run_tutorial("your_photographs.md", folder, environment)
    output = run_tutorial("alt_text.md", folder, environment)
    assert output.count('<img src="site/images/') == 2
    rows = [json.loads(line) for line in (folder / "alt_text.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["beach.jpg", "dog.jpg"]


@pytest.mark.long
def test_a_collection_is_indexed_and_searched(folder, environment):
    output = run_tutorial("search.md", folder, environment)
    assert output.count("collection/beach.jpg") == 2


@pytest.mark.long
def test_another_system_is_scored_and_compared(folder, environment):
    output = run_tutorial("score.md", folder, environment)
    assert "CIDEr-D" in output and "BLEU-4" in output


@pytest.mark.slow
def test_the_commands_of_the_readme_train_caption_and_search(folder, environment):
    text = (ROOT / "README.md").read_text()
    start = text.index("## Your own photographs")
    output = run_commands(text[start:], folder, environment)
    assert "photo.jpg\t" in output and "CIDEr-D" in output
    assert (folder / "runs" / "mine" / "report_val.html").is_file()
    assert output.count("folder/beach.jpg") >= 2  # a caption, and a search result


@pytest.mark.long
def test_the_notebook_runs_as_a_script(tmp_path, environment):
    script = ROOT / "docs" / "notebooks" / "first_captioner.py"
    process = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**environment, "STEPS": "6", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("scene ") == 6 and "Captioner(" in process.stdout
    assert (tmp_path / "captions.png").is_file() and (tmp_path / "attention.png").is_file()


def test_all_tutorials_are_tested():
    tested = {"your_photographs.md", "alt_text.md", "search.md", "score.md"}
    assert {path.name for path in TUTORIALS.glob("*.md")} == tested | NEEDS_OTHER_MACHINES
