"""Plots show images, captions, attention and curves at the expected positions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from caption_jax.evaluation.report.plots import attention_overlay, caption_grid, loss_curve
from caption_jax.telemetry.metrics_file import MetricsFile, Row

RED, GREEN = (220, 30, 30), (30, 180, 30)


def make_images(*colours: tuple[int, int, int], size: int = 32) -> np.ndarray:
    """Returns images of one colour each, [images, size, size, 3]."""
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def count_nonwhite(image: np.ndarray) -> int:
    """Returns the number of pixels that are not white."""
    return int((image < 250).any(axis=-1).sum())


def test_the_grid_shows_images_in_order_with_captions_below():
    grid = caption_grid(
        make_images(RED, GREEN), ["a red square", "a green square"], ["red", "green"], columns=2, cell=100
    )
    assert grid.dtype == np.uint8
    width = grid.shape[1]
    assert tuple(grid[60, width // 4]) == RED
    assert tuple(grid[60, 3 * width // 4]) == GREEN
    assert count_nonwhite(grid[120:]) > 100  # captions, below the images


def test_the_grid_size_depends_on_the_number_of_images_and_columns():
    wide = caption_grid(make_images(*[RED] * 4), ["a"] * 4, ["b"] * 4, columns=4, cell=80)
    tall = caption_grid(make_images(*[RED] * 4), ["a"] * 4, ["b"] * 4, columns=2, cell=80)
    single = caption_grid(make_images(RED), ["a"], [["b", "c"]], columns=4, cell=80)
    assert wide.shape[0] < tall.shape[0] and wide.shape[1] > tall.shape[1]
    assert single.shape[1] < tall.shape[1]


def test_long_captions_are_wrapped_inside_their_cell():
    text = "a very long caption about a red square " * 8
    grid = caption_grid(make_images(RED), [text], ["red"], cell=128)
    assert count_nonwhite(grid[:, -8:]) == 0  # the margin is empty
    assert grid.shape[1] == caption_grid(make_images(RED), ["a"], ["red"], cell=128).shape[1]


def test_captions_are_not_parsed_as_formulas_and_may_contain_any_characters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dollars = caption_grid(make_images(RED), ["costs $5_{x}$ or $1"], ["\\frac{ $"], cell=128)
        caption_grid(make_images(RED), ["漢字 🙂"], [""], cell=128)
    formula = caption_grid(make_images(RED), ["costs 5x or $1"], ["\\frac{ $"], cell=128)
    assert not np.array_equal(dollars, formula)


def test_captions_must_match_the_images():
    with pytest.raises(ValueError, match="same nonzero length, got 2, 1 and 2"):
        caption_grid(make_images(RED, RED), ["one"], ["one", "two"])
    with pytest.raises(ValueError, match="same nonzero length, got 0, 0 and 0"):
        caption_grid(make_images(RED)[:0], [], [])


def crop_panels(image: np.ndarray, count: int, cell: int) -> list[np.ndarray]:
    """Crops the images, `cell` pixels wide, from a row of `count` panels."""
    gap = (image.shape[1] - count * cell) // (count + 1)
    return [image[gap : gap + cell, gap + i * (cell + gap) :][:, :cell].astype(float) for i in range(count)]


def test_attention_highlights_the_attended_cell():
    attention = np.zeros((2, 16))
    attention[0, 0] = 1.0  # top left
    attention[1, 7] = 0.1  # second row, last column; weak attention is scaled up
    overlay = attention_overlay(make_images((250, 250, 250), size=64)[0], ["dog", "ball"], attention, cell=120)
    image_panel, first, second = crop_panels(overlay, 3, 120)
    assert image_panel.min() > 240
    for panel, (row, column) in ((first, (0, 0)), (second, (1, 3))):
        cells = panel.reshape(4, 30, 4, 30, 3).mean(axis=(1, 3, 4))
        assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)
        assert cells[3, 1] < 90 < 180 < cells.max()


def test_attention_to_the_vector_is_separate_from_the_grid():
    attention = np.zeros((1, 5))
    attention[0, 3], attention[0, 4] = 0.25, 0.75
    image = make_images((250, 250, 250), size=64)[0]
    with_vector = attention_overlay(image, ["dog"], attention, cell=120)
    grid_only = attention_overlay(image, ["dog"], attention[:, :4], cell=120)
    np.testing.assert_array_equal(crop_panels(with_vector, 2, 120)[1], crop_panels(grid_only, 2, 120)[1])
    assert count_nonwhite(with_vector[140:]) > count_nonwhite(grid_only[140:])  # the fraction next to the word


def test_overlays_support_oblong_grids_empty_captions_and_a_single_position():
    image = make_images(RED)[0]
    assert attention_overlay(image, ["a"], np.ones((1, 6)), grid=(2, 3)).ndim == 3
    assert attention_overlay(image, ["a"], np.ones((1, 1))).ndim == 3
    assert attention_overlay(image, [], np.zeros((0, 4))).ndim == 3


def test_attention_that_does_not_fit_the_grid_is_rejected():
    image = make_images(RED)[0]
    with pytest.raises(ValueError, match="7 memory positions"):
        attention_overlay(image, ["a"], np.ones((1, 7)))
    with pytest.raises(ValueError, match="2 words"):
        attention_overlay(image, ["a", "b"], np.ones((1, 4)))


def write_metrics(path, *, has_scores: bool) -> None:
    file = MetricsFile(path)
    for step in range(10, 101, 10):
        file.append(Row(step, "train", {"loss": math.nan if step == 50 else 10 / step}))
    if has_scores:
        file.append(Row(50, "val", {"CIDEr-D": 0.3, "loss": 1.0}))
        file.append(Row(100, "val", {"CIDEr-D": 0.6, "loss": 0.9}))


def test_the_loss_curve_has_a_panel_for_scores_if_they_exist(tmp_path):
    sizes = {}
    for has_scores in (False, True):
        write_metrics(tmp_path / f"{has_scores}.jsonl", has_scores=has_scores)
        loss_curve(tmp_path / f"{has_scores}.jsonl", tmp_path / f"{has_scores}.png")
        with Image.open(tmp_path / f"{has_scores}.png") as image:
            sizes[has_scores] = image.size
            assert count_nonwhite(np.asarray(image)) > 500
    assert sizes[True][1] > sizes[False][1]


def test_the_loss_curve_of_a_run_without_metrics_is_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss_curve.png")
    assert (tmp_path / "loss_curve.png").stat().st_size > 0
    with pytest.raises(FileNotFoundError):
        loss_curve(tmp_path / "absent.jsonl", tmp_path / "loss_curve.png")
