"""`python -m caption_jax.metrics`, run as a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caption_jax.metrics import score

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = {
    7: ["a dog runs", "the brown dog runs on grass"],
    8: ["two cats", "two cats sit on a mat"],
    9: ["a red ball"],
}


def run_metrics(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "caption_jax.metrics", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture
def paths(tmp_path) -> dict[str, Path]:
    file_names = {image: f"{image}.jpg" for image in REFERENCES}
    contents = {
        "annotations": {
            "images": [{"id": image, "file_name": name} for image, name in file_names.items()],
            "annotations": [
                {"image_id": image, "caption": caption}
                for image, captions in REFERENCES.items()
                for caption in captions
            ],
        },
        "first": [{"image_id": image, "caption": f"{captions[0]}!"} for image, captions in REFERENCES.items()],
        "second": [{"image_id": image, "caption": "a dog with a"} for image in REFERENCES],
        "by_file_name": [{"image_id": file_names[image], "caption": "a dog"} for image in REFERENCES],
        "incomplete": [{"image_id": 7, "caption": "a dog"}],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: tmp_path / f"{name}.json" for name in contents}


def test_scores_of_one_file_are_printed_and_written(paths, tmp_path):
    process = run_metrics(
        paths["first"], paths["annotations"], "--no-java", f"--json={tmp_path / 'report.json'}", "--samples=50"
    )
    assert process.returncode == 0, process.stderr
    expected = score(REFERENCES, {image: captions[0] for image, captions in REFERENCES.items()})
    for name, value in expected.items():
        assert any(line.split()[:2] == [name, f"{value:.4f}"] for line in process.stdout.splitlines()), name
    assert "3 images" in process.stdout and "PTB" in process.stdout and "function_word_ending" in process.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["results"][0]["metrics"]["CIDEr-D"]["value"] == pytest.approx(expected["CIDEr-D"])
    assert [row["image_id"] for row in report["results"][0]["images"]] == [7, 8, 9]
    assert "comparison" not in report


def test_two_files_are_compared(paths):
    process = run_metrics(paths["first"], paths["annotations"], paths["second"], "--no-java", "--samples=50")
    assert process.returncode == 0, process.stderr
    comparison = process.stdout.split("second.json - ")[1]
    line = next(line for line in comparison.splitlines() if "CIDEr-D" in line)
    assert line.split()[1].startswith("-") and "p =" in line


def test_results_keyed_by_file_name_are_accepted(paths):
    process = run_metrics(paths["by_file_name"], paths["annotations"], "--no-java", "--samples=10")
    assert process.returncode == 0, process.stderr


def test_an_image_set_mismatch_is_reported(paths):
    process = run_metrics(paths["incomplete"], paths["annotations"], "--no-java")
    assert process.returncode == 1 and process.stdout == ""
    assert "incomplete.json does not match" in process.stderr and "2 without a result: 8, 9" in process.stderr
    missing = run_metrics(paths["first"], "nowhere.json", "--no-java")
    assert missing.returncode == 1 and "nowhere.json" in missing.stderr and "Traceback" not in missing.stderr


def test_help_shows_an_example():
    process = run_metrics("--help")
    assert process.returncode == 0 and "python -m caption_jax.metrics captions_val.json" in process.stdout
