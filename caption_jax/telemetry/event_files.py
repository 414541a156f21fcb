"""TensorBoard's event files, written by a thread that alone imports TensorFlow."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.extras import optional_packages
from input_pipeline.tensorflow_devices import keep_tensorflow_off_accelerators

_MOST_PENDING = 1000  # writes; further ones wait for the oldest


class EventFiles:
    """Writes the event files of a folder, in order, in a background thread.

    The thread starts with the first write and begins by importing TensorFlow, which takes seconds that the caller does
    not wait for. Every method raises what an earlier write raised.

    Args:
        folder: of the event files, local or on a bucket.
        open_writer: makes the `clu.metric_writers.MetricWriter` of the folder; called in the thread.
    """

    def __init__(self, folder: epath.PathLike, open_writer: Callable[[str], Any] | None = None) -> None:
        self._folder = str(folder)
        self._open_writer = open_writer or _open_summary_writer
        self._thread: ThreadPoolExecutor | None = None  # Python waits for its tasks before it exits
        self._pending: collections.deque[Future[None]] = collections.deque()
        self._writer: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers under their names."""
        self._submit("write_scalars", step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures under their names, each uint8 [height, width, 3]."""
        self._submit("write_images", step, images)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts under their names."""
        self._submit("write_texts", step, texts)

    def close(self) -> None:
        """Waits until everything is written, and closes the files. Without a write before, nothing is opened.

        Closing twice does nothing.
        """
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._pending.append(thread.submit(self._close_writer))
        thread.shutdown()
        self._collect(down_to=0)

    def _submit(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        self._collect(down_to=_MOST_PENDING)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="event-files")
        self._pending.append(self._thread.submit(self._write, method, step, dict(values)))

    def _collect(self, down_to: int) -> None:
        """Raises the error of a write that is over, and waits for the oldest writes beyond `down_to`."""
        while self._pending and (self._pending[0].done() or len(self._pending) > down_to):
            self._pending.popleft().result()

    def _write(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = self._open_writer(self._folder)
        getattr(self._writer, method)(step, values)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _open_summary_writer(folder: str) -> Any:
    keep_tensorflow_off_accelerators("TensorBoard's event file")
    with optional_packages("TensorBoard's event file"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(folder)
