"""Records of a training run in TensorBoard, the log and `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from caption_jax.telemetry.event_files import EventFiles
from caption_jax.telemetry.metrics_file import MetricsFile, Row
from caption_jax.telemetry.write_queue import WriteQueue
from input_pipeline.files import storage_path

# TensorBoard sorts cards by tag and opens the first two groups. The most important scalars are therefore also written
# to a group that comes before "train" and "val".
OVERVIEW = "overview"
_OVERVIEW_NAMES = ("CIDEr-D", "loss")


class Monitor:
    """Writes a run's scalars, images and texts to its workdir, in the main process only.

    Everything is written to event files in `<workdir>/tensorboard`. Scalars are also written to
    `<workdir>/metrics.jsonl` and, if it is verbose, the log.

    Background threads write all files, so that no training step waits for a bucket or for the import of TensorFlow.
    If a write fails, a later method call raises its error.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: Mapping[str, Any] | None = None,
        *,
        is_main_process: bool = True,
        start_step: int = 0,
        repeats_evaluation: bool = False,
    ) -> None:
        """Opens `metrics.jsonl`, in the main process.

        Args:
            workdir: folder of the run, local or on a bucket.
            config: config of the run, written to TensorBoard as text if the run is new.
            is_main_process: whether this is the main process; if False, all methods do nothing.
            start_step: the step from which the run resumes; later rows of `metrics.jsonl` are dropped.
            repeats_evaluation: whether the run repeats the evaluation of `start_step`, whose row is also dropped.
        """
        self._active = is_main_process
        if not self._active:
            return
        workdir = storage_path(workdir)
        self._metrics = MetricsFile(workdir / "metrics.jsonl", start_step, repeats_evaluation=repeats_evaluation)
        self._rows = WriteQueue("metrics")
        self._events = EventFiles(workdir / "tensorboard")
        self._texts: dict[str, str] = {}  # texts of step 0 that have not been written yet
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
        scalars = {name: float(value) for name, value in values.items()}
        self._rows.submit(self._metrics.append, Row(step, prefix, scalars))
        scalars_by_tag = {f"{prefix}/{name}": scalar for name, scalar in scalars.items()}
        overview = {f"{OVERVIEW}/{name}_{prefix}": scalars[name] for name in _OVERVIEW_NAMES if name in scalars}
        self._write_first_texts()
        self._events.scalars(step, {**overview, **scalars_by_tag})
        message = ", ".join(f"{tag}={scalar:.6g}" for tag, scalar in sorted(scalars_by_tag.items()))
        logging.debug("[%d] %s", step, message)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images by name, each uint8 [height, width, 3] or [images, height, width, 3]."""
        if self._active:
            self._write_first_texts()
            self._events.images(step, {name: np.asarray(image) for name, image in images.items()})

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts by name."""
        if self._active:
            self._write_first_texts()
            self._events.texts(step, texts)

    def flush_metrics(self) -> None:
        """Waits until all rows of `metrics.jsonl` are on the disk. A run that resumes does not repeat them."""
        if self._active:
            self._rows.submit(self._metrics.sync)
            self._rows.flush()

    def close(self) -> None:
        """Waits for all pending writes. Idempotent."""
        if not self._active:
            return
        self._active = False
        try:
            self._rows.close()
        finally:
            self._events.close()

    def _write_first_texts(self) -> None:
        """Writes the texts of step 0 before the first other event, so that a run that logs nothing creates no files."""
        if self._texts:
            self._events.texts(0, self._texts)
            self._texts = {}
