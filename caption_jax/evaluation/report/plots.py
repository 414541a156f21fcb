"""Plots of captioned images, attention maps and loss curves.

They use matplotlib's Agg canvas instead of pyplot, which has global state and is not thread-safe.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image

from caption_jax.evaluation.report.attention_panels import attention_panels
from caption_jax.telemetry.metrics_file import moving_average, read_metrics, series
from input_pipeline.extras import optional_packages
from input_pipeline.files import write_atomically

with optional_packages("drawing plots"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

RgbImage = UInt8[np.ndarray, "rows columns 3"]

_DPI = 100
_GAP = 14  # pixels between cells and at the border
_LINE_HEIGHT = 15  # pixels, for 9-point text
_REGULAR_WIDTH, _BOLD_WIDTH = 7.1, 8.2  # conservative estimates of pixels per letter of 9-point text
_BLACK, _GREY, _BLUE, _ORANGE = "#1a1a1a", "#707070", "#1f5fa8", "#d1660a"


def caption_grid(
    images: UInt8[np.ndarray, "images height width 3"],
    generated: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    columns: int = 4,
    cell: int = 256,
) -> RgbImage:
    """Draws images in a grid, with the generated caption in black and the references in grey below each image.

    Args:
        images: images of any aspect ratio; the longer side is scaled to `cell` pixels.
        generated: one caption per image.
        references: one or more reference captions per image; the first two are shown.
        columns: maximum number of images per row.
        cell: side length of a grid cell in pixels.

    Returns:
        The grid as an RGB image.

    Raises:
        ValueError: there are no images, or the numbers of images, captions and references differ.
    """
    if not len(images) or not len(images) == len(generated) == len(references):
        raise ValueError(
            f"images, generated captions and references must have the same nonzero length, got "
            f"{len(images)}, {len(generated)} and {len(references)}"
        )
    first_references = [[item] if isinstance(item, str) else list(item)[:2] for item in references]
    caption_lines = [_wrap(caption or "(empty)", cell, 3, _BOLD_WIDTH) for caption in generated]
    reference_lines = [[line for caption in item for line in _wrap(caption, cell, 2)] for item in first_references]
    num_lines = max(len(above) + len(below) for above, below in zip(caption_lines, reference_lines, strict=True))
    columns = min(columns, len(images))
    layout = _GridLayout(columns, math.ceil(len(images) / columns), cell, num_lines)
    figure = layout.make_figure()
    for i, image in enumerate(images):
        _draw_image(layout.add_axes(figure, i), image)
        layout.draw_text(figure, i, 0, caption_lines[i], color=_BLACK, weight="bold")
        layout.draw_text(figure, i, len(caption_lines[i]), reference_lines[i], color=_GREY)
    return _render(figure)


def attention_overlay(
    image: UInt8[np.ndarray, "height width 3"],
    words: Sequence[str],
    attention: Float[np.ndarray, "words memory"],
    *,
    grid: tuple[int, int] | None = None,
    columns: int = 6,
    cell: int = 180,
) -> RgbImage:
    """Draws the original image and the panels of `attention_panels` in a grid, with titles.

    Args:
        image: see `attention_panels`.
        words: see `attention_panels`; if there are none, only the original image is drawn.
        attention: see `attention_panels`.
        grid: see `attention_panels`.
        columns: maximum number of panels per row.
        cell: side length of a panel in pixels.

    Raises:
        ValueError: see `attention_panels`.
    """
    panels = [("", np.asarray(image, np.uint8)), *attention_panels(image, words, attention, grid=grid)]
    columns = min(columns, len(panels))
    layout = _GridLayout(columns, math.ceil(len(panels) / columns), cell, num_lines=1)
    figure = layout.make_figure()
    for i, (title, panel) in enumerate(panels):
        _draw_image(layout.add_axes(figure, i), panel)
        layout.draw_text(figure, i, 0, _wrap(title, cell, 1), color=_BLACK)
    return _render(figure)


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


def _wrap(text: str, width: int, max_lines: int, letter_width: float = _REGULAR_WIDTH) -> list[str]:
    """Wraps text into lines of at most `width` pixels, truncated to `max_lines` lines with an ellipsis."""
    return textwrap.wrap(text, max(int(width / letter_width), 8), max_lines=max_lines, placeholder=" …")


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_axis_off()


@dataclass(frozen=True)
class _GridLayout:
    """A grid of square cells with sides of `side` pixels and `num_lines` lines of text below each cell."""

    columns: int
    rows: int
    side: int
    num_lines: int

    @property
    def row_height(self) -> int:
        return self.side + self.num_lines * _LINE_HEIGHT + 8 + _GAP

    @property
    def width(self) -> int:
        return self.columns * (self.side + _GAP) + _GAP

    @property
    def height(self) -> int:
        return self.rows * self.row_height + _GAP

    def make_figure(self) -> Figure:
        return Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")

    def add_axes(self, figure: Figure, index: int) -> Axes:
        left, top = self._get_corner(index)
        bottom = 1 - (top + self.side) / self.height
        return figure.add_axes((left / self.width, bottom, self.side / self.width, self.side / self.height))

    def draw_text(self, figure: Figure, index: int, first_line: int, lines: Sequence[str], **style: str) -> None:
        """Draws lines of text below a cell, starting at line `first_line` of its text area."""
        left, top = self._get_corner(index)
        for line_number, line in enumerate(lines, start=first_line + 1):
            x, y = left / self.width, 1 - (top + self.side + line_number * _LINE_HEIGHT) / self.height
            # parse_math=False, because dollar signs in a caption do not enclose a formula.
            figure.text(x, y, line, va="baseline", fontsize=9, parse_math=False, **style)

    def _get_corner(self, index: int) -> tuple[int, int]:
        """Returns the (left, top) pixel of a cell."""
        row, column = divmod(index, self.columns)
        return _GAP + column * (self.side + _GAP), _GAP + row * self.row_height


def _render(figure: Figure) -> RgbImage:
    """Renders the figure as an RGB image. Glyphs missing from the font become boxes."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
