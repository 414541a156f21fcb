"""Reporting during training: TensorBoard, the log, `metrics.jsonl`, and progress on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
from absl import logging
from etils import epath

from caption_jax.runtime.libraries import quiet_libraries
from caption_jax.telemetry.clock import Clock
from caption_jax.telemetry.event_files import EventFiles
from caption_jax.telemetry.metrics_file import MetricsFile, Row
from caption_jax.telemetry.progress import ProgressLine, describe_progress


class Monitor:
    """Writes a run's scalars, images and texts to its workdir, in the main process only.

    Everything is written to event files in `<workdir>/tensorboard`, and scalars also to `<workdir>/metrics.jsonl` and
    the log. On a terminal, the progress line replaces the log messages of training scalars.

    A background thread opens the event files at the first write, so no training step waits for the import of
    TensorFlow.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: Mapping[str, Any] | None = None,
        *,
        is_main_process: bool = True,
        total_steps: int = 0,
        start_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        """Opens `metrics.jsonl` and the progress line, in the main process.

        Args:
            workdir: folder of the run, local or on a bucket.
            config: config of the run, written to TensorBoard as text if the run is new.
            is_main_process: whether to write anything; if False, all methods do nothing.
            total_steps: the step at which the run ends.
            start_step: the step from which the run resumes; later rows of `metrics.jsonl` are dropped.
            stream: output stream of the progress line; stderr by default.
        """
        quiet_libraries()
        self._total_steps = total_steps
        self._active = is_main_process
        if not self._active:
            return
        workdir = epath.Path(workdir)
        self._metrics = MetricsFile(workdir / "metrics.jsonl", start_step)
        self._events = EventFiles(workdir / "tensorboard")
        self._texts: dict[str, str] = {}  # of step 0, until they are written
        stream = stream or sys.stderr
        self._line = ProgressLine(stream) if stream.isatty() else None
        if config is not None and start_step == 0:
            self._texts = {"config": f"```\n{json.dumps(dict(config), indent=2, default=str)}\n```"}

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str) -> None:
        """Writes scalars by name.

        Args:
            step: training step.
            values: Python, NumPy or JAX scalars by name.
            prefix: split on which they were measured, such as "train" or "val".
        """
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append(Row(step, prefix, numbers))
        tagged = {f"{prefix}/{name}": number for name, number in numbers.items()}
        self._write_first_texts()
        self._events.scalars(step, tagged)
        if self._line is None or prefix != "train":
            values = ", ".join(f"{name}={value:.6g}" for name, value in sorted(tagged.items()))
            logging.info("[%d] %s", step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images by name, each uint8 [height, width, 3]."""
        if self._active:
            self._write_first_texts()
            self._events.images(step, {name: np.asarray(image) for name, image in images.items()})

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts by name."""
        if self._active:
            self._write_first_texts()
            self._events.texts(step, texts)

    def progress(self, step: int, loss: float, clock: Clock) -> None:
        """Shows the run's progress, on a terminal as a line redrawn in place, otherwise as a log message."""
        if not self._active:
            return
        text = describe_progress(step, self._total_steps, loss, clock)
        if self._line is None:
            logging.info("%s", text)
        else:
            self._line.draw(text)

    def close(self) -> None:
        """Flushes everything and ends the progress line. Idempotent."""
        if not self._active:
            return
        self._active = False
        if self._line is not None:
            self._line.close()
        self._events.close()

    def _write_first_texts(self) -> None:
        """Writes the texts of step 0 before the first other event, so a run that logs nothing has no event files."""
        if self._texts:
            self._events.texts(0, self._texts)
            self._texts = {}
