"""The file `metrics.jsonl`, with all scalars logged by a run, one line per step and split.

    {"step": 50, "split": "train", "values": {"loss": 4.21, "token_accuracy": 0.31}}

Non-finite values are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Float

from caption_jax.errors import WorkdirError
from input_pipeline.files import is_on_bucket, storage_path, write_atomically


@dataclass(frozen=True)
class Row:
    """Metrics of one split at one step."""

    step: int
    split: str
    values: Mapping[str, float]

    def to_line(self) -> str:
        """Returns the row as a line of JSON, including the newline."""
        values = {name: value if math.isfinite(value) else None for name, value in self.values.items()}
        row = {"step": self.step, "split": self.split, "values": values}
        return json.dumps(row, allow_nan=False) + "\n"


class MetricsFile:
    """Appends rows to a file, after dropping those of steps that a resumed run will repeat."""

    def __init__(self, path: epath.PathLike, start_step: int = 0, *, repeats_evaluation: bool = False) -> None:
        """Opens the file of a run that starts from `start_step` (0 for a new run), and drops rows of later steps.

        With `repeats_evaluation`, the row of the evaluation of `start_step` is also dropped.
        """
        self._path = storage_path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._bucket_text = ""  # the whole file if it is on a bucket, because objects cannot be appended to
        if not self._path.exists():
            return
        evaluated = start_step - repeats_evaluation  # last step whose evaluation is not repeated
        rows = [
            row for row in read_metrics(self._path) if row.step <= (evaluated if row.split == "val" else start_step)
        ]
        text = "".join(row.to_line() for row in rows)
        if text != self._path.read_text():
            write_atomically(self._path, text)
        if is_on_bucket(self._path):
            self._bucket_text = text

    def sync(self) -> None:
        """Waits until all rows are on the disk, so that they survive a power failure."""
        if not is_on_bucket(self._path) and self._path.exists():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())

    def append(self, row: Row) -> None:
        """Writes one row and closes the file, so that the row is not lost if the process is killed."""
        if is_on_bucket(self._path):
            self._bucket_text += row.to_line()
            write_atomically(self._path, self._bucket_text)
            return
        try:
            with self._path.open("a") as file:
                file.write(row.to_line())
        except OSError as error:
            error.filename = os.fspath(self._path)  # a write that fails does not name its file
            raise


def read_metrics(path: epath.PathLike) -> list[Row]:
    """Reads all rows, in the order written.

    An incomplete last line, left by a killed process or a full disk, is ignored, and so are the zeros with which some
    file systems fill the end of a file after a power failure.

    Raises:
        FileNotFoundError: the file does not exist.
        WorkdirError: a line is not a valid row; the message contains its number.
    """
    lines = storage_path(path).read_text().rstrip("\0").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def series(rows: Sequence[Row], name: str) -> dict[str, Float[np.ndarray, "points 2"]]:
    """Returns the finite values of a metric by split, as (step, value) points sorted by step.

    Splits without finite values are omitted.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if math.isfinite(row.values.get(name, math.nan)):
            points.setdefault(row.split, []).append((row.step, row.values[name]))
    return {split: np.array(sorted(values)) for split, values in points.items()}


def moving_average(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Computes a centred moving average over 1/40 of the points. The window is truncated at both ends."""
    radius = len(values) // 80
    return np.array([values[max(0, i - radius) : i + radius + 1].mean() for i in range(len(values))])


def _parse(path: epath.PathLike, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
        values = {str(name): math.nan if value is None else float(value) for name, value in row["values"].items()}
        return Row(int(row["step"]), str(row["split"]), values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkdirError(f"{path}, line {number}: invalid row of metrics ({error}); fix or delete it") from error
