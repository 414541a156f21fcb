"""Pictures for people: images with captions, attention over an image word by word, the loss curve.

Drawn with matplotlib's Agg canvas alone: no window, no global state, so any thread may draw.
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

from caption_jax.telemetry.metrics_file import read_metrics, series, smoothed
from input_pipeline.files import write_atomically

Picture = UInt8[np.ndarray, "height width 3"]

_DPI = 100
_GAP = 14  # pixels between cells and around all
_LINE = 15  # pixels from a line of 9-point text to the next
_PLAIN, _BOLD = 7.1, 8.2  # pixels of a 9-point letter, on the wide side
_INK, _PALE, _BLUE, _ORANGE = "#1a1a1a", "#707070", "#1f5fa8", "#d1660a"


def caption_grid(
    images: UInt8[np.ndarray, "n height width 3"],
    generated: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    columns: int = 4,
    cell: int = 256,
) -> Picture:
    """Draws images in a grid, the generated caption under each in dark ink and its references in grey.

    Args:
        images: any square or oblong size; shown `cell` pixels wide or high, whichever is longer.
        generated: one caption an image.
        references: one or several an image; the first two are shown.
        columns: images in a row.
        cell: side of an image's cell in pixels.

    Raises:
        ValueError: there are no images, or not as many captions as images.
    """
    if not len(images) or not len(images) == len(generated) == len(references):
        raise ValueError(
            f"captions and references must be as many as images, and at least one: "
            f"{len(images)}, {len(generated)}, {len(references)}"
        )
    shown = [[text] if isinstance(text, str) else list(text)[:2] for text in references]
    above = [_wrap(text or "(empty)", cell, 3, _BOLD) for text in generated]
    below = [[line for text in texts for line in _wrap(text, cell, 2)] for texts in shown]
    columns = min(columns, len(images))
    lines = max(len(a) + len(b) for a, b in zip(above, below, strict=True))
    cells = _Cells(columns, math.ceil(len(images) / columns), cell, lines)
    figure = cells.figure()
    for i, image in enumerate(images):
        _show(cells.axes(figure, i), image)
        cells.write(figure, i, 0, above[i], color=_INK, weight="bold")
        cells.write(figure, i, len(above[i]), below[i], color=_PALE)
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
    """Draws the image once for each word, bright where the decoder looked when it said the word.

    No words give the bare image.

    Args:
        image: as for `attention_panels`; likewise `words`, `attention` and `grid`.
        words: the caption's words, or as many of them as are of interest.
        attention: a row for each word.
        grid: (rows, columns) of cells; a square by default.
        columns: panels in a row, the bare image being the first.
        cell: side of a panel in pixels.

    Raises:
        ValueError: the slots do not form the grid, or words and rows differ in number.
    """
    panels = [("", np.asarray(image, np.uint8)), *attention_panels(image, words, attention, grid=grid)]
    columns = min(columns, len(panels))
    cells = _Cells(columns, math.ceil(len(panels) / columns), cell, lines=1)
    figure = cells.figure()
    for i, (title, picture) in enumerate(panels):
        _show(cells.axes(figure, i), picture)
        cells.write(figure, i, 0, _wrap(title, cell, 1), color=_INK)
    return _to_array(figure)


def attention_panels(
    image: Picture,
    words: Sequence[str],
    attention: Float[np.ndarray, "words slots"],
    *,
    grid: tuple[int, int] | None = None,
) -> list[tuple[str, Picture]]:
    """For each word a title and the image, bright where the decoder looked when it said the word.

    Each panel is scaled to its own brightest cell. Where the image's vector follows the grid in the memory, the share
    of attention that went to it stands behind the word.

    Args:
        image: as the encoder saw it, or the same view in other proportions.
        words: the caption's words, or as many of them as are of interest.
        attention: a row for each word, over the grid's cells row by row and then the vector if there is one; rows need
            not sum to one.
        grid: (rows, columns) of cells; a square by default.

    Raises:
        ValueError: the slots do not form the grid, or words and rows differ in number.
    """
    attention = np.asarray(attention, np.float64)
    if not len(words):
        return []
    if attention.ndim != 2 or len(words) != len(attention):
        raise ValueError(f"{len(words)} words need attention [words, slots], not of shape {attention.shape}")
    (rows, cols), has_vector = _grid_shape(attention.shape[1], grid)
    panels = []
    for word, row, mass in zip(words, attention, attention.sum(axis=1), strict=True):
        title = f"{word}  ({row[-1] / max(mass, 1e-12):.0%} vector)" if has_vector else word
        panels.append((title, _light(np.asarray(image, np.uint8), row[: rows * cols].reshape(rows, cols))))
    return panels


def loss_curve(metrics: epath.PathLike, path: epath.PathLike) -> None:
    """Draws `metrics.jsonl` as a PNG: the losses above, and CIDEr-D of the validation below where there is any.

    Args:
        metrics: file that `Monitor` writes.
        path: PNG to write, local or on a bucket.

    Raises:
        FileNotFoundError: there are no metrics.
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
        axes.axhline(best, color=_PALE, linewidth=0.8, linestyle=":")
        axes.set_title(f"{split}: best CIDEr-D {best:.3f} at step {step:.0f}", loc="left", fontsize=9, color=_PALE)
    axes.set_ylabel("CIDEr-D")
    axes.set_ylim(bottom=0)


def _grid_shape(slots: int, grid: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """The grid of cells, and whether a vector's slot follows it."""
    candidates = [grid] if grid else [(math.isqrt(n), math.isqrt(n)) for n in (slots, slots - 1) if n]
    for rows, cols in candidates:
        if slots - rows * cols in (0, 1):
            return (rows, cols), slots > rows * cols
    raise ValueError(f"{slots} slots of attention are no grid of {grid or 'square shape'}, with or without a vector")


def _light(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The image in grey and dark, lit up in colour where the weights are high."""
    height, width = image.shape[:2]
    weights = weights / max(weights.max(), 1e-12)
    smooth = Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(smooth), 0.0, 1.0)[..., None]
    pixels = image.astype(np.float32)
    dark = 0.25 * pixels.mean(axis=-1, keepdims=True)
    return np.clip(dark + light * (pixels - dark), 0, 255).astype(np.uint8)


def _wrap(text: str, width: int, lines: int, letter: float = _PLAIN) -> list[str]:
    return textwrap.wrap(text, max(int(width / letter), 8), max_lines=lines, placeholder=" …")


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_axis_off()


@dataclass(frozen=True)
class _Cells:
    """Where the cells of a picture lie: squares of `side` pixels with room for `lines` of text below each."""

    columns: int
    rows: int
    side: int
    lines: int

    @property
    def step(self) -> int:
        return self.side + self.lines * _LINE + 8 + _GAP

    @property
    def width(self) -> int:
        return self.columns * (self.side + _GAP) + _GAP

    @property
    def height(self) -> int:
        return self.rows * self.step + _GAP

    def figure(self) -> Figure:
        return Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")

    def axes(self, figure: Figure, index: int) -> Axes:
        left, top = self._corner(index)
        bottom = 1 - (top + self.side) / self.height
        return figure.add_axes((left / self.width, bottom, self.side / self.width, self.side / self.height))

    def write(self, figure: Figure, index: int, first: int, lines: Sequence[str], **style: str) -> None:
        """Writes lines below a cell, beginning at its line `first`."""
        left, top = self._corner(index)
        for number, line in enumerate(lines, start=first + 1):
            x, y = left / self.width, 1 - (top + self.side + number * _LINE) / self.height
            # Captions are shown as they are: a pair of dollar signs must not start a formula.
            figure.text(x, y, line, va="baseline", fontsize=9, parse_math=False, **style)

    def _corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, self.columns)
        return _GAP + column * (self.side + _GAP), _GAP + row * self.step


def _to_array(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box; the text is in the log too
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
