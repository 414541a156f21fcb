"""Line charts as inline SVG: crisp at every size, in the page's own colours, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from caption_jax.evaluation.report.html.markup import Markup, join, tag
from caption_jax.telemetry.metrics_file import Row, series, smoothed

_WIDTH, _HEIGHT = 460, 284
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 14, 40  # pixels around the area of the lines: on a phone, text is larger
_MOST_POINTS = 400  # of a line: more make the file larger, not the picture better
_MOST_MARKS = 40


@dataclass(frozen=True)
class Line:
    """A line of a chart: its (step, value) points, its name in the legend ("" for none), its class in the style."""

    points: Float[np.ndarray, "points 2"]
    name: str
    style: str


def training_charts(rows: Sequence[Row]) -> Markup:
    """The loss, and the validation's CIDEr-D where there is any; nothing where a run has logged nothing."""
    losses, scores = series(rows, "loss"), series(rows, "CIDEr-D")
    charts = []
    if losses:
        lines = [line for split, points in losses.items() for line in _loss_lines(split, points)]
        charts.append(_figure("Loss", "nats a token", lines, _ends("loss", losses)))
    if scores:
        lines = [Line(points, split, "val") for split, points in scores.items()]
        best = [(split, *points[points[:, 1].argmax()]) for split, points in scores.items()]
        said = "; ".join(f"best CIDEr-D of {split} {value:.3f} at step {step:,.0f}" for split, step, value in best)
        charts.append(_figure("CIDEr-D", "higher is better", lines, said, floor=0.0))
    return join(charts)


def _loss_lines(split: str, points: np.ndarray) -> list[Line]:
    if split != "train":
        return [Line(points, split, "val")]
    smooth = np.stack([points[:, 0], smoothed(points[:, 1])], axis=1)
    return [Line(points, "", "raw"), Line(smooth, split, "train")]


def _ends(name: str, found: dict[str, np.ndarray]) -> str:
    last = (f"{split} {points[-1, 1]:.3f} at step {points[-1, 0]:,.0f}" for split, points in found.items())
    return f"last {name}: {', '.join(last)}"


def _figure(title: str, unit: str, lines: Sequence[Line], said: str, floor: float | None = None) -> Markup:
    """A chart with its heading, its legend, and in words what it shows."""
    named = [line for line in lines if line.name]
    legend = [tag("span", tag("i", class_=f"key {line.style}"), line.name, class_="legend") for line in named]
    return tag(
        "figure",
        tag("figcaption", tag("h3", title, " ", tag("small", unit)), tag("p", *legend)),
        _svg(lines, f"{title} over training steps; {said}.", floor),
        tag("p", f"{said[0].upper()}{said[1:]}.", class_="note"),
        class_="chart",
    )


def _svg(lines: Sequence[Line], description: str, floor: float | None) -> Markup:
    points = np.concatenate([line.points for line in lines if line.style != "raw"])
    steps = _ticks(0.0, float(points[:, 0].max()), 5)
    low = float(points[:, 1].min()) if floor is None else floor
    values = _ticks(low, float(points[:, 1].max()), 5)
    frame = _Frame((steps[0], max(steps[-1], 1.0)), (values[0], values[-1]))
    content = [tag("title", description), *_grid(frame, steps, values)]
    for line in lines:
        content += _drawn(frame, line)
    return tag("svg", *content, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=description)


@dataclass(frozen=True)
class _Frame:
    """Where a (step, value) point lies in the picture."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        share = (step - self.steps[0]) / (self.steps[1] - self.steps[0])
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.values[0]) / (self.values[1] - self.values[0])
        return round(_HEIGHT - _BOTTOM - min(share, 1.05) * (_HEIGHT - _BOTTOM - _TOP), 1)


def _grid(frame: _Frame, steps: Sequence[float], values: Sequence[float]) -> list[Markup]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = []
    for value in values:
        y = frame.y(value)
        drawn.append(tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", f"{value:g}", x=_LEFT - 7, y=y + 4, text_anchor="end"))
    for step in steps:
        anchor = "end" if step == steps[-1] else "middle"
        drawn.append(tag("text", _short(step), x=frame.x(step), y=bottom + 17, text_anchor=anchor))
    drawn.append(tag("text", "step", x=(_LEFT + right) / 2, y=_HEIGHT - 3, text_anchor="middle"))
    return drawn


def _drawn(frame: _Frame, line: Line) -> list[Markup]:
    kept = np.unique(np.linspace(0, len(line.points) - 1, _MOST_POINTS).round().astype(int))
    places = [(frame.x(step), frame.y(value)) for step, value in line.points[kept]]
    path = tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"line {line.style}")
    if line.style != "val" or len(places) > _MOST_MARKS:
        return [path]
    return [path, *(tag("circle", cx=x, cy=y, r=3, class_=f"mark {line.style}") for x, y in places)]


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers, about as many as wanted, from at or below `low` to at or above `high`."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + step) / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
