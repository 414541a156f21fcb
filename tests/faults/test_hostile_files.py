"""Caption files, results and images of strangers: rejected with one message, within seconds and bounded memory."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import hostile_files
import pytest
from child_process import Outcome, run_python
from PIL import Image

MAX_SECONDS = 15  # an unloaded machine takes less than 5; tests run in parallel
MAX_MB = 1000

OPEN = """
import logging, sys
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import UserError
from input_pipeline.sources import open_splits

root, captions, on_error, outside = sys.argv[1:]
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    spec = DataSpec(source="folder", root=root, captions=(captions,), on_error=on_error, outside_files=outside)
    print(sorted(record.image.name for split in open_splits(spec).values() for record in split))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
SCORE = "import sys; from caption_jax.metrics.__main__ import main; sys.exit(main(sys.argv[1:]))"
CAPTION = """
import sys
from input_pipeline.images import ImageError, Preprocessing
for path in sys.argv[1:]:
    try:
        Preprocessing(size=8).load(path)
    except ImageError as error:
        print(error)
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """A dataset with two images and without captions."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / name, "PNG")
    return tmp_path


def open_dataset(root: Path, captions: str, on_error: str = "skip", outside: str = "follow") -> Outcome:
    """Opens a dataset in a child process."""
    outcome = run_python(OPEN, root, captions, on_error, outside)
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.seconds < MAX_SECONDS and outcome.peak_mb < MAX_MB, outcome
    return outcome


@pytest.mark.parametrize("name", hostile_files.REJECTED)
def test_hostile_caption_files_are_rejected(root, name):
    write, expected = hostile_files.REJECTED[name]
    write(root / name)
    outcome = open_dataset(root, name)
    assert outcome.status == 1 and name in outcome.err and expected in outcome.err
    assert len(outcome.err) < 5000 and "root:" not in outcome.err


@pytest.mark.parametrize("name", hostile_files.PARTLY_REJECTED)
def test_hostile_records_are_skipped_and_reported(root, name):
    write, expected = hostile_files.PARTLY_REJECTED[name]
    write(root / name)
    outcome = open_dataset(root, name)
    assert outcome.status == 0 and outcome.out.strip() in ("['b.png']", "['b']"), outcome
    assert "malformed rows: 1\n" in outcome.err and expected in outcome.err
    assert open_dataset(root, name, on_error="stop").status == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*hostile_files.REJECTED, *hostile_files.PARTLY_REJECTED])
def test_hostile_results_are_rejected_in_one_line(tmp_path, name):
    write, expected = (hostile_files.REJECTED | hostile_files.PARTLY_REJECTED)[name]
    write(tmp_path / name)
    (tmp_path / "references.json").write_text(json.dumps({"b.png": ["ok"]}))
    outcome = run_python(SCORE, tmp_path / name, tmp_path / "references.json", "--no-java")
    assert outcome.status == 1 and outcome.seconds < MAX_SECONDS and outcome.peak_mb < MAX_MB, outcome
    assert outcome.err.startswith("error: ") and name in outcome.err and expected in outcome.err
    assert len(outcome.err) < 5000 and "root:" not in outcome.err and "Traceback" not in outcome.err


def test_names_that_lead_to_other_files_are_refused(root):
    rows = ["../../../../../etc/passwd,x", "../images/b.png,ok", "/dev/zero,x", "pipe.png,x", "nothing.png,x"]
    os.mkfifo(root / "images" / "pipe.png")
    (root / "images" / "nothing.png").symlink_to("missing.png")
    (root / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    outcome = open_dataset(root, "captions.csv")
    assert outcome.out.strip() == "['b.png']"
    for problem in (
        "paths that leave the folder of the dataset: 1\n    ../../../../../etc/passwd\n",
        "files that are not regular files: 2\n    /dev/zero is a device\n    pipe.png is a named pipe\n",
        "missing images: 1\n    nothing.png",
    ):
        assert f"\n  {problem}" in outcome.err


def test_folders_in_caption_files_are_checked_like_names(root):
    images = [{"filename": "passwd", "filepath": "../../../../../etc", "sentences": ["x"]}]
    images += [{"filename": "b.png", "filepath": "../images", "sentences": ["ok"]}]
    (root / "dataset.json").write_text(json.dumps({"images": images}))
    outcome = open_dataset(root, "dataset.json")
    assert outcome.out.strip() == "['b.png']"
    assert "paths that leave the folder of the dataset: 1\n    passwd\n" in outcome.err


def test_links_and_absolute_paths_are_followed_with_one_line_or_refused(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("c.png", "d.png", "e.png"):
        Image.new("RGB", (8, 8), "red").save(elsewhere / name)
    (root / "images" / "c.png").symlink_to(elsewhere / "c.png")
    (root / "images" / "linked").symlink_to(elsewhere)
    (root / "captions.csv").write_text(
        f"image,caption\nb.png,x\nc.png,x\nlinked/d.png,x\n{elsewhere / 'e.png'},x\n{root / 'images' / 'a.png'},x\n"
    )
    followed = open_dataset(root, "captions.csv")
    assert followed.out.strip() == "['a.png', 'b.png', 'c.png', 'd.png', 'e.png']"
    assert followed.err.strip() == (
        f"absolute paths and links lead to 3 files outside of {root}, such as c.png, which is {elsewhere / 'c.png'}; "
        "to refuse them, set config.data.outside_files='refuse'"
    )
    refused = open_dataset(root, "captions.csv", outside="refuse")
    assert refused.out.strip() == "['a.png', 'b.png']"
    assert "files outside of the folder of the dataset (config.data.outside_files): 3\n" in refused.err


def test_a_linked_caption_file_is_followed_with_one_line_or_refused(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "captions.csv"
    elsewhere.write_text("image,caption\nb.png,ok\n")
    (root / "captions.csv").symlink_to(elsewhere)
    followed = open_dataset(root, "captions.csv")
    assert followed.out.strip() == "['b.png']"
    assert followed.err.startswith(
        f"links lead to 1 file outside of {root}, such as captions.csv, which is {elsewhere}"
    )
    assert "is a link that leaves" in open_dataset(root, "captions.csv", outside="refuse").err


def test_images_that_are_not_regular_files_are_named(root):
    os.mkfifo(root / "pipe.png")
    (root / "huge.png").touch()
    os.truncate(root / "huge.png", 4 << 30)
    (root / "text.png").symlink_to("/etc/passwd")
    outcome = run_python(CAPTION, root / "pipe.png", "/dev/zero", root / "huge.png", root, root / "text.png")
    assert outcome.status == 0 and outcome.seconds < MAX_SECONDS and outcome.peak_mb < MAX_MB, outcome
    reasons = ["a named pipe", "a device", "has 4,294,967,296 bytes", "a folder", "not in a supported image format"]
    lines = outcome.out.splitlines()
    assert len(lines) == len(reasons) and "root:" not in outcome.out
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))


def test_names_and_captions_cannot_control_the_terminal(root):
    (root / "captions.json").write_text(json.dumps({"\x1b[2J\nerror: forged\u202e.png": "x", "b.png": "ok"}))
    outcome = open_dataset(root, "captions.json")
    assert "\n    \\x1b[2J\\nerror: forged\\u202e.png (the nearest file is" in outcome.err
    results = root / "results.json"
    results.write_text(json.dumps({"\x1b[2J\nerror: forged\u202e": "x"}))
    scored = run_python(SCORE, results, root / "captions.json", "--no-java")
    assert scored.status == 1 and "\x1b" not in scored.err and "\u202e" not in scored.err
    assert len(scored.err.splitlines()) == 1


@pytest.mark.parametrize("header", ['{"images": 1, "ngrams": 2}\n', ""], ids=["lines", "one line"])
def test_compressed_document_frequencies_cannot_fill_the_memory(root, header):
    """A file of a few megabytes that decompresses to 1 GB."""
    references = root / "captions.json"
    references.write_text(json.dumps({"b.png": ["ok"]}))
    with gzip.open(root / "frequencies.gz", "wb", compresslevel=1) as file:
        file.write(header.encode())
        for _ in range(1000):
            file.write((b"1\tx\n" * 2**18) if header else b"x" * 2**20)
    outcome = run_python(SCORE, references, references, "--no-java", f"--frequencies={root / 'frequencies.gz'}")
    assert outcome.status == 1 and outcome.seconds < MAX_SECONDS and outcome.peak_mb < MAX_MB, outcome
    assert "frequencies.gz is not a valid document frequency file" in outcome.err
