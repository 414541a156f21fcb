"""Pictures for people: images with captions, attention over an image word by word, the loss curve.

Drawn on matplotlib's Agg canvas without pyplot: no window and no global state, so any thread may draw.
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
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from caption_jax.evaluation.report.attention_panels import attention_panels
from caption_jax.telemetry.metrics_file import read_metrics, series, smoothed
from input_pipeline.files import write_atomically

Picture = UInt8[np.ndarray, "height width 3"]

_DPI = 100
_GAP = 14  # pixels between cells and around the picture
_LINE_HEIGHT = 15  # pixels, of 9-point text
_REGULAR_WIDTH, _BOLD_WIDTH = 7.1, 8.2  # pixels per letter of 9-point text, a generous estimate
_BLACK, _GREY, _BLUE, _ORANGE = "#1a1a1a", "#707070", "#1f5fa8", "#d1660a"


def caption_grid(
    images: UInt8[np.ndarray, "n height width 3"],
    generated: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    columns: int = 4,
    cell: int = 256,
) -> Picture:
    """Draws images in a grid, the generated caption under each in black and its references in grey.

    Args:
        images: of any aspect ratio; the longer side is drawn `cell` pixels long.
        generated: one caption per image.
        references: one or several per image, of which the first two are shown.
        columns: images per row.
        cell: side of an image's cell in pixels.

    Returns:
        The picture, as wide as the number of columns in use needs.

    Raises:
        ValueError: there are no images, or the numbers of images, captions and references differ.
    """
    if not len(images) or not len(images) == len(generated) == len(references):
        raise ValueError(
            f"captions and references must be as many as images, and at least one: "
            f"{len(images)}, {len(generated)}, {len(references)}"
        )
    first_references = [[text] if isinstance(text, str) else list(text)[:2] for text in references]
    generated_lines = [_wrap(text or "(empty)", cell, 3, _BOLD_WIDTH) for text in generated]
    reference_lines = [[line for text in texts for line in _wrap(text, cell, 2)] for texts in first_references]
    lines = max(len(a) + len(b) for a, b in zip(generated_lines, reference_lines, strict=True))
    columns = min(columns, len(images))
    layout = _GridLayout(columns, math.ceil(len(images) / columns), cell, lines)
    figure = layout.figure()
    for i, image in enumerate(images):
        _show(layout.axes(figure, i), image)
        layout.write(figure, i, 0, generated_lines[i], color=_BLACK, weight="bold")
        layout.write(figure, i, len(generated_lines[i]), reference_lines[i], color=_GREY)
    return _to_array(figure)


def attention_overlay(
    image: Picture,
    words: Sequence[str],
    attention: Float[np.ndarray, "words slots"],
    *,
    grid: tuple[int, int] | None = None,
    columns: int = 6,
    cell: int = 180,
) -> Picture:
    """Draws the unmodified image, then the panels of `attention_panels` with their titles, in a grid.

    Args:
        image: as for `attention_panels`; likewise `words`, `attention` and `grid`.
        words: the caption's words, or some of them. Without words only the unmodified image is drawn.
        attention: a row per word.
        grid: (rows, columns) of cells; square by default.
        columns: panels per row.
        cell: side of a panel in pixels.

    Raises:
        ValueError: the slots do not form the grid, or words and rows differ in number.
    """
    panels = [("", np.asarray(image, np.uint8)), *attention_panels(image, words, attention, grid=grid)]
    columns = min(columns, len(panels))
    layout = _GridLayout(columns, math.ceil(len(panels) / columns), cell, lines=1)
    figure = layout.figure()
    for i, (title, picture) in enumerate(panels):
        _show(layout.axes(figure, i), picture)
        layout.write(figure, i, 0, _wrap(title, cell, 1), color=_BLACK)
    return _to_array(figure)


def loss_curve(metrics: epath.PathLike, path: epath.PathLike) -> None:
    """Draws a run's logged metrics as a PNG: losses by step, with CIDEr-D in a panel below if it was measured.

    Args:
        metrics: the `metrics.jsonl` that `Monitor` writes.
        path: PNG to write, local or on a bucket.

    Raises:
        FileNotFoundError: there is no such metrics file.
        WorkdirError: a line of it is damaged.
    """
    rows = read_metrics(metrics)
    scores = series(rows, "CIDEr-D")
    figure = Figure(figsize=(8, 6 if scores else 4), dpi=_DPI, layout="constrained", facecolor="white")
    upper, *lower = np.atleast_1d(figure.subplots(2 if scores else 1, sharex=True))
    _draw_losses(upper, series(rows, "loss"))
    for axes in lower:
        _draw_scores(axes, scores)
    for axes in (upper, *lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    (lower or [upper])[-1].set_xlabel("step")
    buffer = io.BytesIO()
    Image.fromarray(_to_array(figure)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _draw_losses(axes: Axes, losses: dict[str, np.ndarray]) -> None:
    for split, points in losses.items():
        if split == "train":
            axes.plot(*points.T, color=_BLUE, alpha=0.3, linewidth=1)
            axes.plot(points[:, 0], smoothed(points[:, 1]), color=_BLUE, linewidth=1.8, label="train")
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
    """Lines of at most `width` pixels; text beyond `max_lines` is replaced by an ellipsis."""
    return textwrap.wrap(text, max(int(width / letter_width), 8), max_lines=max_lines, placeholder=" …")


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_axis_off()


@dataclass(frozen=True)
class _GridLayout:
    """A grid of square cells, `side` pixels each, with room for `lines` lines of text below each."""

    columns: int
    rows: int
    side: int
    lines: int

    @property
    def row_height(self) -> int:
        return self.side + self.lines * _LINE_HEIGHT + 8 + _GAP

    @property
    def width(self) -> int:
        return self.columns * (self.side + _GAP) + _GAP

    @property
    def height(self) -> int:
        return self.rows * self.row_height + _GAP

    def figure(self) -> Figure:
        return Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")

    def axes(self, figure: Figure, index: int) -> Axes:
        left, top = self._corner(index)
        bottom = 1 - (top + self.side) / self.height
        return figure.add_axes((left / self.width, bottom, self.side / self.width, self.side / self.height))

    def write(self, figure: Figure, index: int, first: int, lines: Sequence[str], **style: str) -> None:
        """Writes lines of text below a cell, starting at line `first` of its text area."""
        left, top = self._corner(index)
        for number, line in enumerate(lines, start=first + 1):
            x, y = left / self.width, 1 - (top + self.side + number * _LINE_HEIGHT) / self.height
            # Captions are shown as they are: a pair of dollar signs must not start a formula.
            figure.text(x, y, line, va="baseline", fontsize=9, parse_math=False, **style)

    def _corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, self.columns)
        return _GAP + column * (self.side + _GAP), _GAP + row * self.row_height


def _to_array(figure: Figure) -> Picture:
    """Renders the figure; letters that the font lacks become boxes."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
