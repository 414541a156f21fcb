"""The cells of `benchmarks.input_rates` load complete batches, and their ratios are above 1 if the goal is met."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_run

from benchmarks import input_rates
from benchmarks.alternate import Seconds
from input_pipeline import images


@pytest.fixture
def photographs(tmp_path) -> list[str]:
    """Eight JPEG files, each of which is listed twice."""
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for path, colour in zip(paths, list(small_run.COLOURS) * 2, strict=True):
        small_run.box_image(colour).resize((480, 360)).save(path)
    return [str(path) for path in paths] * 2


@pytest.mark.parametrize("kind", ["cache", "lock", "processes", "threads"])
def test_each_side_loads_batches(kind, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(input_rates, "CACHED_IMAGES", 10)
    for name in ("_decode_reduced", "resize_to_square"):  # replaced by "lock"
        monkeypatch.setattr(images, name, getattr(images, name))
    folder = Path(tmp_path / "temporary")
    folder.mkdir()
    load_batches = input_rates.make_side(kind, photographs, 16, 4, folder)
    load_batches()
    load_batches()


def test_unreadable_images_are_an_error(photographs, tmp_path):
    Path(photographs[0]).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(AssertionError, match="could not be read"):
        input_rates.make_side("threads", photographs, 16, 4, tmp_path)()


def test_ratios_are_above_one_if_the_goal_is_met():
    seconds = {
        "cache": Seconds(1.0, 2.0),
        "lock": Seconds(9.0, 0.2),
        "processes": Seconds(1, 2),
        "threads": Seconds(2, 3),
    }
    cells = input_rates.make_cells(seconds, 400, 64)
    assert cells["pixel cache, images/s"]["ours"] == 312 * 64 and cells["pixel cache, images/s"]["ratio"] > 1
    locked = cells["interpreter lock, us per image"]
    assert locked["ours"] == pytest.approx(0.2e6 / (62 * 64)) and locked["ratio"] == pytest.approx(100 / locked["ours"])
    assert cells["two processes, images/s"]["ratio"] == 2
