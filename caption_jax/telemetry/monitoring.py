"""What a run tells: TensorBoard, the log, `metrics.jsonl`, and a progress line on a terminal."""

from __future__ import annotations

import functools
import json
import logging as standard_logging
import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from caption_jax.telemetry.clock import Clock, format_duration
from caption_jax.telemetry.metrics_file import MetricsFile, Row


class Monitor:
    """Writes scalars, pictures and texts of a run below its workdir; does nothing in processes but the main one.

    Event files go to `<workdir>/tensorboard` in a thread of their own; scalars go to `<workdir>/metrics.jsonl` and the
    log as well. On a terminal the progress line stands in for logged training scalars.

    Event files are opened when there is something to write, which is when TensorFlow is imported: that takes seconds,
    and a run's first steps need not wait for it.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ConfigDict | Mapping[str, Any] | None = None,
        *,
        is_main_process: bool = True,
        total_steps: int = 0,
        start_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        """Opens what needs no TensorFlow, in the main process.

        Args:
            workdir: folder of the run, local or on a bucket.
            config: shown as text in TensorBoard when the run is new.
            is_main_process: whether this process is the one that writes.
            total_steps: the step at which the run ends.
            start_step: the step the run goes on from; rows of `metrics.jsonl` after it are dropped.
            stream: where progress is shown; stderr by default.
        """
        quiet_libraries()
        self._total_steps = total_steps
        self._active = is_main_process
        if not self._active:
            return
        workdir = epath.Path(workdir)
        self._metrics = MetricsFile(workdir / "metrics.jsonl", start_step)
        self._folder = workdir / "tensorboard"
        self._texts: dict[str, str] = {}  # of the first step, until the event files are open
        stream = stream or sys.stderr
        self._line = ProgressLine(stream) if stream.isatty() else None
        if config is not None and start_step == 0:
            values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
            self._texts = {"config": f"```\n{json.dumps(values, indent=2, default=str)}\n```"}

    def scalars(self, step: int, values: Mapping[str, Any], prefix: str) -> None:
        """Writes numbers (Python's, NumPy's or JAX's scalars) of `prefix`, a split's name such as "train" or "val"."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append(Row(step, prefix, numbers))
        tagged = {f"{prefix}/{name}": number for name, number in numbers.items()}
        self._writers.events.write_scalars(step, tagged)
        if self._line is None or prefix != "train":
            self._writers.log.write_scalars(step, tagged)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [height, width, 3] each, under their names."""
        if self._active:
            self._writers.events.write_images(step, {name: np.asarray(picture) for name, picture in pictures.items()})

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, Markdown, under their names."""
        if self._active:
            self._writers.events.write_texts(step, dict(texts))

    def progress(self, step: int, loss: float, clock: Clock) -> None:
        """Shows how far the run is: one line, written over, on a terminal; a line of the log elsewhere."""
        if not self._active:
            return
        text = describe_progress(step, self._total_steps, loss, clock)
        if self._line is None:
            logging.info("%s", text)
        else:
            self._line.draw(text)

    def close(self) -> None:
        """Writes everything out and ends the progress line."""
        if not self._active:
            return
        self._active = False
        if self._line is not None:
            self._line.close()
        if "_writers" in vars(self):  # not opened for the sake of closing
            self._writers.events.close()

    @functools.cached_property
    def _writers(self) -> _Writers:
        writers = _open_writers(self._folder)
        if self._texts:
            writers.events.write_texts(0, self._texts)
        return writers


def describe_progress(step: int, total_steps: int, loss: float, clock: Clock) -> str:
    """Returns for example "step 1200/3750 (32%)  loss 2.3451  412 images/s  input wait 3%  ETA 4:32"."""
    parts = [f"step {step}/{total_steps} ({100 * step // max(total_steps, 1)}%)", f"loss {loss:.4f}"]
    if clock.rates:
        parts.append(f"{clock.rates['images_per_second']:.3g} images/s")
        parts.append(f"input wait {clock.rates['input_wait']:.0%}")
    if clock.eta_seconds is not None:
        parts.append(f"ETA {format_duration(clock.eta_seconds)}")
    return "  ".join(parts)


class ProgressLine(standard_logging.Filter):
    """One line of a terminal that is written over; lines of the log clear it first and it comes back below them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._drawn = False
        self._handlers = [logging.get_absl_handler(), *standard_logging.getLogger().handlers]
        for handler in self._handlers:
            handler.addFilter(self)

    def draw(self, text: str) -> None:
        """Shows `text`, cut to the terminal's width, in place of what stood there."""
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{text[:width]}")
        self._stream.flush()
        self._drawn = True

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Makes way for a line of the log; lets every record through."""
        del record
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
        return True

    def close(self) -> None:
        """Leaves the last state standing and goes to the next line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = False
        for handler in self._handlers:
            handler.removeFilter(self)


class _LibraryNotes(standard_logging.Filter):
    """Drops what libraries report of each step of their own work; warnings and errors pass."""

    _CHATTY = re.compile(r"[/\\](site|dist)-packages[/\\](orbax|tensorflow_datasets|jax|grain|etils)[/\\]")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return record.levelno > standard_logging.INFO or not self._CHATTY.search(record.pathname)


_LIBRARY_NOTES = _LibraryNotes()


def quiet_libraries() -> None:
    """Keeps the log to what this project says, and to libraries' warnings: Orbax alone writes a page a checkpoint."""
    logging.get_absl_handler().addFilter(_LIBRARY_NOTES)  # the same filter again changes nothing


def keep_tensorflow_off_accelerators() -> None:
    """Imports TensorFlow and hides GPUs and TPUs from it, so that their memory stays JAX's.

    Raises:
        RuntimeError: TensorFlow has taken an accelerator already.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes about CPU instructions
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:  # its devices are set up; harmless unless it holds one of these
            if tf.config.get_visible_devices(kind):
                raise RuntimeError(
                    f"TensorFlow holds a {kind} that JAX needs: call keep_tensorflow_off_accelerators() before "
                    "anything else uses TensorFlow"
                ) from error


class _Writers(NamedTuple):
    """clu's writers: of event files, in a thread of its own, and of the log."""

    events: Any
    log: Any


def _open_writers(folder: epath.Path) -> _Writers:
    keep_tensorflow_off_accelerators()
    from clu import metric_writers

    events = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(folder))])
    return _Writers(events, metric_writers.LoggingWriter())
