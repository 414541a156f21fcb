"""Unusual and broken images, end to end: they are used upright or reported by name, and do not affect others."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import ROOT, box_image, run_main, write_images

from caption_jax.metrics import read_results
from caption_jax.telemetry.metrics_file import read_metrics
from input_pipeline.records import DataError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_the_camera(image: Image.Image) -> bytes:
    """A JPEG with rotated pixels and the corresponding EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def with_alpha_in_its_palette(image: Image.Image) -> bytes:
    """A palette PNG whose first colours are transparent."""
    return encoded(image.quantize(16), "PNG", transparency=bytes([0, 128, 255]))


def in_sixteen_bits(image: Image.Image) -> bytes:
    return encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


# Readable images, and the words of their captions if these identify the image.
UNUSUAL = {
    "cmyk.jpg": (encoded(box_image("red", "left").convert("CMYK"), "JPEG", quality=95), ("red", "left")),
    "moving.gif": (
        encoded(box_image("blue", "left"), "GIF", save_all=True, append_images=[box_image("red", "right")]),
        ("blue", "left"),
    ),
    "one_pixel.png": (encoded(Image.new("RGB", (1, 1), (9, 90, 200)), "PNG"), None),
    "palette.png": (with_alpha_in_its_palette(box_image("green", "right")), None),
    "rotated.jpg": (rotated_by_the_camera(box_image("green", "right")), ("green", "right")),
    "sixteen.png": (in_sixteen_bits(box_image("yellow", "right")), None),
}
BROKEN = {"text.jpg": b"This is no image.\n" * 40, "truncated.jpg": encoded(box_image(), "JPEG", quality=95)[:500]}


def test_caption_reports_broken_images_and_captions_the_others(small_workdir, tmp_path, capsys):
    for name, content in {**BROKEN, **{name: content for name, (content, _) in UNUSUAL.items()}}.items():
        (tmp_path / name).write_bytes(content)
    assert run_main("--mode=caption", f"--workdir={small_workdir}", tmp_path) == 1
    output = capsys.readouterr()
    captions = {Path(path).name: caption for path, caption in (line.split("\t") for line in output.out.splitlines())}
    assert list(captions) == sorted(UNUSUAL)
    for name, (_, words) in UNUSUAL.items():
        if words:
            assert all(word in captions[name] for word in words), (name, captions[name])
    for name in BROKEN:
        assert f"error: {tmp_path / name}: " in output.err
    assert "2 of 8 images have no caption" in output.err


def test_json_lines_have_the_errors_of_failed_images(small_workdir, tmp_path, capsys):
    (tmp_path / "text.jpg").write_bytes(BROKEN["text.jpg"])
    (tmp_path / "cmyk.jpg").write_bytes(UNUSUAL["cmyk.jpg"][0])
    assert run_main("--mode=caption", f"--workdir={small_workdir}", "--format=jsonl", tmp_path) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["path"].endswith("cmyk.jpg") and "red" in good["caption"]
    assert bad["path"].endswith("text.jpg") and "not in a supported image format" in bad["error"]


def train(folder: Path, workdir: Path, *overrides: str) -> int:
    config = f"--config={ROOT / 'tests' / 'small_run.py'}"
    return run_main(config, f"--workdir={workdir}", f"--config.data.root={folder}", *overrides)


@pytest.fixture
def damaged(tmp_path, small_images) -> Path:
    """The small data set with all unusual and two broken images in training, and a broken one in validation."""
    folder = shutil.copytree(small_images, tmp_path / "damaged")
    contents = [*BROKEN.values(), *(content for content, _ in UNUSUAL.values()), BROKEN["truncated.jpg"]]
    for number, content in enumerate(contents):  # 8 images are for training, the ninth is in the validation split
        (folder / "images" / f"{number:02d}.png").write_bytes(content)
    return folder


@pytest.mark.slow
def test_training_continues_without_broken_images(compile_cache, small_workdir, damaged, tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    with caplog.at_level(logging.WARNING, logger="input_pipeline"):
        assert train(damaged, workdir) == 0
    for name in ("00.png", "01.png", "08.png"):
        assert f"Skipping unreadable image: {damaged / 'images' / name}: " in caplog.text
    rows = [row.values for row in read_metrics(workdir / "metrics.jsonl") if row.split == "train"]
    assert [row["unreadable_images"] for row in rows] == [2] * 8  # each is counted once, for any number of epochs
    assert all(math.isfinite(row["loss"]) for row in rows)

    results = json.loads((workdir / "eval_val.json").read_text())
    assert results["protocol"]["images"] == 2 and results["protocol"]["unreadable_images"] == 1
    assert list(results["protocol"]["unreadable"]) == ["08.png"]
    captions = read_results(workdir / "captions_val.json")
    assert list(captions) == ["08.png", "09.png"] and captions["08.png"] == ""
    output = capsys.readouterr().out
    assert "1 images could not be read and count as empty captions:\n  08.png: " in output


def test_training_stops_if_no_image_can_be_read(compile_cache, small_workdir, tmp_path):
    folder = write_images(tmp_path / "data")
    for path in (folder / "images").iterdir():
        path.write_bytes(BROKEN["text.jpg"])
    message = r"none of the first 8 images could be read:\n  .*\.png: not in a supported image format"
    with pytest.raises(DataError, match=message):
        train(folder, tmp_path / "run", "--config.train.sample_images=0")
