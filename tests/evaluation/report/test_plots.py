"""The plot of a run shows its losses and, if there are any, its scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from caption_jax.evaluation.report.plots import loss_curve
from caption_jax.telemetry.metrics_file import MetricsFile, Row


def count_nonwhite(image: np.ndarray) -> int:
    """Returns the number of pixels that are not white."""
    return int((image < 250).any(axis=-1).sum())


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
