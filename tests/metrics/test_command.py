"""`python -m caption_jax.metrics`, run as users run it."""

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


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "caption_jax.metrics", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    names = {image: f"{image}.jpg" for image in REFERENCES}
    contents = {
        "annotations": {
            "images": [{"id": image, "file_name": name} for image, name in names.items()],
            "annotations": [
                {"image_id": image, "caption": text} for image, texts in REFERENCES.items() for text in texts
            ],
        },
        "mine": [{"image_id": image, "caption": f"{texts[0]}!"} for image, texts in REFERENCES.items()],
        "theirs": [{"image_id": image, "caption": "a dog with a"} for image in REFERENCES],
        "named": [{"image_id": names[image], "caption": "a dog"} for image in REFERENCES],
        "short": [{"image_id": 7, "caption": "a dog"}],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: tmp_path / f"{name}.json" for name in contents}


def test_one_file(files, tmp_path):
    done = run(files["mine"], files["annotations"], "--no-java", f"--json={tmp_path / 'report.json'}", "--samples=50")
    assert done.returncode == 0, done.stderr
    expected = score(REFERENCES, {image: texts[0] for image, texts in REFERENCES.items()})
    for name, value in expected.items():
        assert any(line.split()[:2] == [name, f"{value:.4f}"] for line in done.stdout.splitlines()), name
    assert "3 images" in done.stdout and "PTB" in done.stdout and "function_word_ending" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["results"][0]["metrics"]["CIDEr-D"]["value"] == pytest.approx(expected["CIDEr-D"])
    assert [row["image_id"] for row in report["results"][0]["images"]] == [7, 8, 9]
    assert "comparison" not in report


def test_two_files_are_compared(files):
    done = run(files["mine"], files["annotations"], files["theirs"], "--no-java", "--samples=50")
    assert done.returncode == 0, done.stderr
    comparison = done.stdout.split("theirs.json - ")[1]
    line = next(line for line in comparison.splitlines() if "CIDEr-D" in line)
    assert line.split()[1].startswith("-") and "p =" in line


def test_results_that_name_files(files):
    done = run(files["named"], files["annotations"], "--no-java", "--samples=10")
    assert done.returncode == 0, done.stderr


def test_a_wrong_image_set_ends_with_the_difference(files):
    done = run(files["short"], files["annotations"], "--no-java")
    assert done.returncode == 1 and done.stdout == ""
    assert "short.json does not match" in done.stderr and "2 without a result: 8, 9" in done.stderr
    missing = run(files["mine"], "nowhere.json", "--no-java")
    assert missing.returncode == 1 and "nowhere.json" in missing.stderr and "Traceback" not in missing.stderr


def test_help_shows_an_example():
    done = run("--help")
    assert done.returncode == 0 and "python -m caption_jax.metrics captions_val.json" in done.stdout
