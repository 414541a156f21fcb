"""`metrics.jsonl`: every number that a run has logged, one line per step and split.

    {"step": 50, "split": "train", "values": {"loss": 4.21, "token_accuracy": 0.31}}

A number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Float

from caption_jax.errors import WorkdirError
from input_pipeline.files import write_atomically


@dataclass(frozen=True)
class Row:
    """Values measured on one split at one step."""

    step: int
    split: str
    values: Mapping[str, float]

    def to_line(self) -> str:
        """The row as a line of JSON, newline included."""
        values = {name: value if math.isfinite(value) else None for name, value in self.values.items()}
        row = {"step": self.step, "split": self.split, "values": values}
        return json.dumps(row, allow_nan=False) + "\n"


class MetricsFile:
    """Appends rows; a run that resumes from a step first drops the rows after it."""

    def __init__(self, path: epath.PathLike, start_step: int = 0) -> None:
        """Opens the file of a run that resumes from `start_step` (0 for a new run), and drops rows of later steps."""
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            return
        text = "".join(row.to_line() for row in read_metrics(self._path) if row.step <= start_step)
        if text != self._path.read_text():
            write_atomically(self._path, text)

    def append(self, row: Row) -> None:
        """Writes one row and closes the file, so that the row survives if the process is killed."""
        with self._path.open("a") as file:
            file.write(row.to_line())


def read_metrics(path: epath.PathLike) -> list[Row]:
    """Reads all rows, in the order written. A last line that a killed process left incomplete is ignored.

    Raises:
        FileNotFoundError: there is no such file.
        WorkdirError: a line is not a row; the message names it.
    """
    lines = epath.Path(path).read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def series(rows: Sequence[Row], name: str) -> dict[str, Float[np.ndarray, "points 2"]]:
    """Finite values of one metric: split -> (step, value) points in order of step; splits without any are omitted."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if math.isfinite(row.values.get(name, math.nan)):
            points.setdefault(row.split, []).append((row.step, row.values[name]))
    return {split: np.array(sorted(values)) for split, values in points.items()}


def smoothed(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Centred moving average over a fortieth of the points; the window shrinks at both ends instead of being padded."""
    reach = len(values) // 80
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _parse(path: epath.PathLike, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
        values = {str(k): math.nan if v is None else float(v) for k, v in row["values"].items()}
        return Row(int(row["step"]), str(row["split"]), values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkdirError(f"{path}, line {number} is no row of metrics ({error}); mend or delete that line") from error
