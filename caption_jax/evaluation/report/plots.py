"""Plots of the loss and the scores of a run.

They use matplotlib's Agg canvas instead of pyplot, which has global state and is not thread-safe.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from caption_jax.telemetry.metrics_file import moving_average, read_metrics, series
from input_pipeline.extras import optional_packages
from input_pipeline.files import write_atomically

with optional_packages("drawing plots"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

RgbImage = UInt8[np.ndarray, "rows columns 3"]

_DPI = 100
_GREY, _BLUE, _ORANGE = "#707070", "#1f5fa8", "#d1660a"


def loss_curve(metrics: epath.PathLike, path: epath.PathLike) -> None:
    """Plots the logged metrics of a run as a PNG: the loss and, if available, CIDEr-D in a second panel.

    Args:
        metrics: the `metrics.jsonl` file written by `Monitor`.
        path: output file, local or on a bucket.

    Raises:
        FileNotFoundError: the metrics file does not exist.
        WorkdirError: the metrics file is corrupt.
    """
    rows = read_metrics(metrics)
    scores = series(rows, "CIDEr-D")
    figure = Figure(figsize=(8, 6 if scores else 4), dpi=_DPI, layout="constrained", facecolor="white")
    panels = np.atleast_1d(figure.subplots(2 if scores else 1, sharex=True))
    _draw_losses(panels[0], series(rows, "loss"))
    if scores:
        _draw_scores(panels[1], scores)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("step")
    buffer = io.BytesIO()
    Image.fromarray(_render(figure)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _draw_losses(axes: Axes, losses: dict[str, np.ndarray]) -> None:
    for split, points in losses.items():
        if split == "train":
            axes.plot(*points.T, color=_BLUE, alpha=0.3, linewidth=1)
            axes.plot(points[:, 0], moving_average(points[:, 1]), color=_BLUE, linewidth=1.8, label="train")
        else:
            axes.plot(*points.T, color=_ORANGE, linewidth=1.8, marker="o", markersize=3, label=split)
    axes.set_ylabel("loss")
    if losses:
        axes.legend(frameon=False)


def _draw_scores(axes: Axes, scores: dict[str, np.ndarray]) -> None:
    for split, points in scores.items():
        axes.plot(*points.T, color=_ORANGE, linewidth=1.8, marker="o", markersize=3, label=split)
        step, best = points[points[:, 1].argmax()]
        axes.axhline(best, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"{split}: best CIDEr-D {best:.3f} at step {step:.0f}", loc="left", fontsize=9, color=_GREY)
    axes.set_ylabel("CIDEr-D")
    axes.set_ylim(bottom=0)


def _render(figure: Figure) -> RgbImage:
    """Renders the figure as an RGB image. Glyphs missing from the font become boxes."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
