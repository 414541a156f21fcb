"""The output of `caption_files` for folders, patterns and files of all kinds. The model is replaced by a fake."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from caption_jax.inference.caption_files import caption_files, find_images
from caption_jax.inference.captioner import Caption
from input_pipeline.images import ImageError, Preprocessing

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "folder_suffixes"


class FakeCaptioner:
    """A captioner that reads images like the real one, and describes all of them in the same way."""

    def caption_each(self, images, context=None):
        for image in images:
            try:
                Preprocessing(size=8).load(image)
            except ImageError as error:
                yield error
            else:
                yield Caption("a photograph", -1.0, ("a", " photograph"))


def run(capsys, *arguments, output_format: str = "text") -> tuple[int, list[str], str]:
    """Returns the exit status, the lines of standard output and standard error."""
    status = caption_files(FakeCaptioner(), list(map(str, arguments)), output_format)
    output = capsys.readouterr()
    return status, output.out.splitlines(), output.err


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with images under unusual names and other files."""
    for name in ("a.png", "b", "c.jfif"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, "JPEG" if name == "c.jfif" else "PNG")
    (tmp_path / "._a.png").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_the_images_of_a_folder_are_captioned_whatever_their_names(folder, capsys):
    status, lines, errors = run(capsys, folder)
    assert status == 0 and errors == ""
    assert lines == [f"{folder / name}\ta photograph" for name in ("a.png", "b", "c.jfif")]


def test_images_that_cannot_be_read_are_named_with_the_reason(folder, capsys):
    (folder / "d").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n")
    status, lines, errors = run(capsys, folder, output_format="jsonl")
    assert status == 1 and len(lines) == 4
    assert json.loads(lines[-1])["error"].startswith(f"{folder / 'd'}: is a JPEG XL image, which is not supported")
    assert f"error: {folder / 'd'}: is a JPEG XL image" in errors


def test_files_that_are_named_explicitly_must_be_images(folder, capsys):
    status, lines, errors = run(capsys, folder / "notes.txt", folder / "._a.png", folder / "nowhere.png", folder / "b")
    assert status == 1 and lines == [f"{folder / 'b'}\ta photograph"]
    assert "notes.txt: not in a supported image format" in errors
    assert "._a.png: is not an image but metadata of macOS" in errors
    assert "nowhere.png: no such file" in errors


def test_arguments_without_images_are_reported_with_the_formats(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not an image")
    status, lines, errors = run(capsys, tmp_path, tmp_path / "*.png")
    assert status == 2 and not lines and "no images match" in errors and "HEIC" in errors
    assert list(find_images([str(tmp_path / "*.txt")])) == [str(tmp_path / "notes.txt")]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases, which are not part of this repository")
@pytest.mark.parametrize("name", ["clean", "photos"])
def test_the_cases_are_captioned_or_named_with_the_reason(name, capsys):
    status, lines, errors = run(capsys, CASES / name)
    captioned = [Path(line.split("\t")[0]).name for line in lines]
    assert captioned == ["five", "four.jpe", "one.jpg", "six.jp2", "three.avif", "two.jfif"]
    assert status == 1 and f"error: {CASES / name / 'seven.heic'}: " in errors and "._one" not in errors


def test_names_cannot_forge_a_line_of_the_output(folder, capsys):
    name = "e\nerror: forged\x1b[2J\u202e\udce9.png"
    (folder / "a.png").rename(folder / name)
    status, lines, errors = run(capsys, folder)
    assert status == 0 and errors == ""
    assert lines[-1] == f"{folder}/e\\nerror: forged\\x1b[2J\\u202e\\udce9.png\ta photograph" and len(lines) == 3
    _, lines, _ = run(capsys, folder, output_format="jsonl")
    assert json.loads(lines[-1])["path"] == f"{folder}/{name}"
    (folder / name).write_bytes(b"not an image")
    status, _, errors = run(capsys, folder)
    assert status == 1 and len(errors.splitlines()) == 1 and "\x1b" not in errors


def test_links_out_of_a_folder_are_counted_in_one_line(folder, tmp_path_factory, caplog):
    caplog.set_level(logging.INFO)
    assert len(list(find_images([str(folder)]))) == 3 and not caplog.messages
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "photo"
    (folder / "b").rename(elsewhere)
    for name in ("b", "d.png"):
        (folder / name).symlink_to(elsewhere)
    assert len(list(find_images([str(folder)]))) == 4
    assert caplog.messages == [
        f"links lead to 2 files outside of {folder}, such as {folder / 'b'}, which is {elsewhere}"
    ]
