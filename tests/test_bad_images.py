"""Unusual and broken image files in captioning and training."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile_images import make_png
from PIL import Image
from small_run import ROOT, box_image, run_main, write_images

from caption_jax.metrics import read_results
from caption_jax.telemetry.metrics_file import read_metrics
from input_pipeline.records import DataError


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def encode_rotated(image: Image.Image) -> bytes:
    """Returns a JPEG of the image rotated by 90 degrees, with the EXIF orientation tag that undoes the rotation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def encode_transparent_palette(image: Image.Image) -> bytes:
    """Returns a PNG with a palette in which the first colours are transparent."""
    return encode(image.quantize(16), "PNG", transparency=bytes([0, 128, 255]))


def encode_16_bit(image: Image.Image) -> bytes:
    """Returns a greyscale PNG with 16 bits per pixel."""
    return encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


# File name -> content, and the words expected in its caption, or None if the caption is not checked.
UNUSUAL_IMAGES = {
    "cmyk.jpg": (encode(box_image("red", "left").convert("CMYK"), "JPEG", quality=95), ("red", "left")),
    "animated.gif": (
        encode(box_image("blue", "left"), "GIF", save_all=True, append_images=[box_image("red", "right")]),
        ("blue", "left"),
    ),
    "one_pixel.png": (encode(Image.new("RGB", (1, 1), (9, 90, 200)), "PNG"), None),
    "palette.png": (encode_transparent_palette(box_image("green", "right")), None),
    "rotated.jpg": (encode_rotated(box_image("green", "right")), ("green", "right")),
    "sixteen_bit.png": (encode_16_bit(box_image("yellow", "right")), None),
}
BROKEN_IMAGES = {
    "narrow.png": make_png(1, 20_000_000, "L"),  # resizing it would take 27 GB
    "text.jpg": b"This is not an image.\n" * 40,
    "truncated.jpg": encode(box_image(), "JPEG", quality=95)[:500],
}


def test_caption_mode_reports_broken_images_and_captions_the_others(small_workdir, tmp_path, capsys):
    unusual = {name: content for name, (content, _) in UNUSUAL_IMAGES.items()}
    for name, content in {**BROKEN_IMAGES, **unusual}.items():
        (tmp_path / name).write_bytes(content)
    assert run_main("--mode=caption", f"--workdir={small_workdir}", tmp_path) == 1
    output = capsys.readouterr()
    captions = {Path(path).name: caption for path, caption in (line.split("\t") for line in output.out.splitlines())}
    assert list(captions) == sorted(UNUSUAL_IMAGES)
    for name, (_, expected_words) in UNUSUAL_IMAGES.items():
        if expected_words:
            assert all(word in captions[name] for word in expected_words), (name, captions[name])
    for name in BROKEN_IMAGES:
        assert f"error: {tmp_path / name}: " in output.err
    assert "3 of 9 images have no caption" in output.err


def test_limits_are_flags_of_caption_mode(small_workdir, tmp_path, capsys):
    box_image().save(tmp_path / "a.png")
    flags = ["--mode=caption", f"--workdir={small_workdir}", "--config.limits.image_side=10"]
    assert run_main(*flags, tmp_path / "a.png") == 1
    assert "the maximum side is 10 (config.limits.image_side)" in capsys.readouterr().err


def test_json_lines_contain_the_errors_of_failed_images(small_workdir, tmp_path, capsys):
    (tmp_path / "text.jpg").write_bytes(BROKEN_IMAGES["text.jpg"])
    (tmp_path / "cmyk.jpg").write_bytes(UNUSUAL_IMAGES["cmyk.jpg"][0])
    assert run_main("--mode=caption", f"--workdir={small_workdir}", "--format=jsonl", tmp_path) == 1
    captioned, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert captioned["path"].endswith("cmyk.jpg") and "red" in captioned["caption"]
    assert failed["path"].endswith("text.jpg") and "not in a supported image format" in failed["error"]


def train(folder: Path, workdir: Path, *overrides: str) -> int:
    """Trains with the config of `small_run` on a folder of images. Returns the exit status."""
    config = f"--config={ROOT / 'tests' / 'small_run.py'}"
    return run_main(config, f"--workdir={workdir}", f"--config.data.root={folder}", *overrides)


@pytest.fixture
def damaged_data(tmp_path, small_images) -> Path:
    """The dataset of `small_run` with six unusual and two broken training images, and a broken validation image."""
    folder = shutil.copytree(small_images, tmp_path / "damaged")
    unusual = [content for content, _ in UNUSUAL_IMAGES.values()]
    contents = [BROKEN_IMAGES["narrow.png"], BROKEN_IMAGES["truncated.jpg"], *unusual, BROKEN_IMAGES["truncated.jpg"]]
    for number, content in enumerate(contents):  # the first eight images are in the training split
        (folder / "images" / f"{number:02d}.png").write_bytes(content)
    return folder


@pytest.mark.slow
def test_training_skips_broken_images(compile_cache, small_workdir, damaged_data, tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    with caplog.at_level(logging.WARNING, logger="input_pipeline"):
        assert train(damaged_data, workdir) == 0
    for name in ("00.png", "01.png", "08.png"):
        assert f"Skipping unreadable image: {damaged_data / 'images' / name}: " in caplog.text
    rows = [row.values for row in read_metrics(workdir / "metrics.jsonl") if row.split == "train"]
    assert [row["unreadable_images"] for row in rows] == [2] * 8  # each image is counted once, not once per epoch
    assert all(math.isfinite(row["loss"]) for row in rows)

    results = json.loads((workdir / "eval_val.json").read_text())
    assert results["protocol"]["images"] == 2 and results["protocol"]["unreadable_images"] == 1
    assert list(results["protocol"]["unreadable"]) == ["08.png"]
    captions = read_results(workdir / "captions_val.json")
    assert list(captions) == ["08.png", "09.png"] and captions["08.png"] == ""
    output = capsys.readouterr().out
    assert "1 images could not be read and count as empty captions:\n  08.png: " in output


@pytest.mark.slow
def test_training_stops_if_no_image_can_be_read(compile_cache, small_workdir, tmp_path):
    folder = write_images(tmp_path / "data")
    for path in (folder / "images").iterdir():
        path.write_bytes(BROKEN_IMAGES["text.jpg"])
    message = (
        r"none of the first 8 images of the split train could be read, such as .*\.png: not in a supported image format"
    )
    with pytest.raises(DataError, match=message):
        train(folder, tmp_path / "run", "--config.train.sample_images=0")
