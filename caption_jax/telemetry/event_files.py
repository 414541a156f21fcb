"""TensorBoard event files, written by a background thread that also imports TensorFlow.

A run does not depend on them, so a full disk does not end it: one warning says what is wrong, and no more events are
written. The scalars are in `metrics.jsonl` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from caption_jax.telemetry.bucket_copies import BucketEventWriter
from caption_jax.telemetry.write_queue import WriteQueue
from input_pipeline.disk_faults import OptionalOutput
from input_pipeline.extras import optional_packages
from input_pipeline.files import is_on_bucket
from input_pipeline.tensorflow_devices import keep_tensorflow_off_accelerators


class EventFiles:
    """Asynchronous writer of event files.

    The first write starts the thread, which imports TensorFlow. This takes seconds but does not block the caller.
    Events are written in order. If a write fails because of a fault of the disk, a warning is logged, and later events
    are dropped. If it fails for another reason, a later method call raises its error.

    Args:
        folder: folder of the event files, local or on a bucket.
        open_writer: returns the `clu.metric_writers.MetricWriter` for the folder; called in the background thread.
    """

    def __init__(self, folder: epath.PathLike, open_writer: Callable[[str], Any] | None = None) -> None:
        self._folder = str(folder)
        self._open_writer = open_writer or _open_summary_writer
        self._queue = WriteQueue("event-files")
        self._writer: Any = None
        self._output = OptionalOutput("no more events are written for TensorBoard")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        self._submit("write_scalars", step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images by name, each uint8 [height, width, 3] or [images, height, width, 3]."""
        self._submit("write_images", step, images)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts by name."""
        self._submit("write_texts", step, texts)

    def close(self) -> None:
        """Waits for all pending writes and closes the files. Idempotent; creates no file if nothing was written."""
        self._queue.close(self._close_writer)

    def _submit(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        self._queue.submit(self._write, method, step, dict(values))

    def _write(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        if self._output.has_failed:
            return
        with self._output:
            if self._writer is None:
                self._writer = self._open_writer(self._folder)
            getattr(self._writer, method)(step, values)

    def _close_writer(self) -> None:
        if self._writer is not None and not self._output.has_failed:
            with self._output:
                self._writer.close()


def _open_summary_writer(folder: str) -> Any:
    keep_tensorflow_off_accelerators("TensorBoard's event file")
    with optional_packages("TensorBoard's event file"):
        from clu import metric_writers

        open_writer = metric_writers.SummaryWriter
        return BucketEventWriter(folder, open_writer) if is_on_bucket(folder) else open_writer(folder)
