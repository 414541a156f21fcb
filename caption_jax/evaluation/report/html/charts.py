"""Layout of line charts for the report: ticks, labels and polylines in SVG coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from caption_jax.telemetry.metrics_file import Row, moving_average, series

Points = Float[np.ndarray, "points 2"]

_MAX_POINTS = 400  # maximum number of points per polyline, which limits the file size
_MAX_MARKERS = 40  # maximum number of points of a curve with markers
_NUM_TICKS = 5


@dataclass(frozen=True)
class Frame:
    """The plot area of a chart and the ranges of its axes. Lengths are in SVG user units.

    The margins leave room for labels at the largest font size in the style sheet, which is used on phones.
    """

    steps: tuple[float, float]
    values: tuple[float, float]
    width: int = 460
    height: int = 284
    left: int = 60
    right: int = 448
    top: int = 14
    bottom: int = 244

    def x(self, step: float) -> float:
        """Horizontal coordinate of a step."""
        fraction = (step - self.steps[0]) / (self.steps[1] - self.steps[0])
        return round(self.left + fraction * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Vertical coordinate of a value, increasing downwards; values far above the range are clipped."""
        fraction = (value - self.values[0]) / (self.values[1] - self.values[0])
        return round(self.bottom - min(fraction, 1.05) * (self.bottom - self.top), 1)


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A curve of a chart in data coordinates.

    Attributes:
        points: (step, value) pairs, sorted by step.
        name: name in the legend; "" to omit the curve from it.
        style: CSS class: "train", "val", or "raw" for a thin background line that does not affect the axes.
    """

    points: Points
    name: str
    style: str


@dataclass(frozen=True)
class Polyline:
    """A curve in SVG coordinates, with a marker at each point if `has_markers` is set."""

    coordinates: Sequence[tuple[float, float]]
    style: str
    has_markers: bool


@dataclass(frozen=True)
class Chart:
    """Template data for one chart.

    Attributes:
        title: heading.
        unit: unit of the values.
        summary: short description of the curves.
        legend: (name, CSS class) of each named curve.
        frame: the plot area.
        value_ticks: ticks of the vertical axis.
        step_ticks: ticks of the horizontal axis.
        polylines: the curves.
    """

    title: str
    unit: str
    summary: str
    legend: Sequence[tuple[str, str]]
    frame: Frame
    value_ticks: Sequence[Tick]
    step_ticks: Sequence[Tick]
    polylines: Sequence[Polyline]


def make_training_charts(rows: Sequence[Row]) -> list[Chart]:
    """Makes charts of the loss and the validation CIDEr-D, omitting metrics that have not been logged."""
    losses, scores = series(rows, "loss"), series(rows, "CIDEr-D")
    charts = []
    if losses:
        curves = [curve for split, points in losses.items() for curve in _make_loss_curves(split, points)]
        last_losses = (f"{split} {points[-1, 1]:.3f} at step {points[-1, 0]:,.0f}" for split, points in losses.items())
        charts.append(_make_chart("Loss", "nats per token", curves, f"last loss: {', '.join(last_losses)}"))
    if scores:
        curves = [Curve(points, split, "val") for split, points in scores.items()]
        best = [(split, *points[points[:, 1].argmax()]) for split, points in scores.items()]
        summary = "; ".join(f"best {split} CIDEr-D {value:.3f} at step {step:,.0f}" for split, step, value in best)
        charts.append(_make_chart("CIDEr-D", "higher is better", curves, summary, minimum=0.0))
    return charts


def _make_loss_curves(split: str, points: Points) -> list[Curve]:
    if split != "train":
        return [Curve(points, split, "val")]
    smooth = np.stack([points[:, 0], moving_average(points[:, 1])], axis=1)
    return [Curve(points, "", "raw"), Curve(smooth, split, "train")]


def _make_chart(title: str, unit: str, curves: Sequence[Curve], summary: str, minimum: float | None = None) -> Chart:
    """Lays out a chart with a value axis that starts at `minimum`, or at the smallest value if None."""
    points = np.concatenate([curve.points for curve in curves if curve.style != "raw"])
    steps = _choose_tick_values(0.0, float(points[:, 0].max()))
    lowest = float(points[:, 1].min()) if minimum is None else minimum
    values = _choose_tick_values(lowest, float(points[:, 1].max()))
    frame = Frame((steps[0], max(steps[-1], 1.0)), (values[0], values[-1]))
    return Chart(
        title=title,
        unit=unit,
        summary=summary,
        legend=[(curve.name, curve.style) for curve in curves if curve.name],
        frame=frame,
        value_ticks=[Tick(frame.y(value), f"{value:g}") for value in values],
        step_ticks=[Tick(frame.x(step), _format_step(step)) for step in steps],
        polylines=[_make_polyline(frame, curve) for curve in curves],
    )


def _make_polyline(frame: Frame, curve: Curve) -> Polyline:
    indices = np.unique(np.linspace(0, len(curve.points) - 1, _MAX_POINTS).round().astype(int))
    coordinates = [(frame.x(step), frame.y(value)) for step, value in curve.points[indices]]
    return Polyline(coordinates, curve.style, has_markers=curve.style == "val" and len(coordinates) <= _MAX_MARKERS)


def _choose_tick_values(low: float, high: float) -> list[float]:
    """Returns about five evenly spaced round values that cover the range from `low` to `high`."""
    span = high - low if high > low else max(abs(high), 1.0)
    min_spacing = span / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(min_spacing))
    spacing = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= min_spacing * 0.999)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(max(high, low + spacing) / spacing - 1e-9)
    return [round(i * spacing, 10) for i in range(first, last + 1)]


def _format_step(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
