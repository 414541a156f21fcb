"""Progress of a run as one line, redrawn in place on a terminal."""

from __future__ import annotations

import logging as standard_logging
import shutil
from typing import TextIO

from absl import logging

from caption_jax.telemetry.clock import Clock, format_duration


def describe_progress(step: int, total_steps: int, loss: float, clock: Clock) -> str:
    """Formats the progress as "step 1200/3750 (32%)  loss 2.3451  412 images/s  input wait 3%  ETA 4:32"."""
    parts = [f"step {step}/{total_steps} ({100 * step // max(total_steps, 1)}%)", f"loss {loss:.4f}"]
    if clock.rates:
        parts.append(f"{clock.rates['images_per_second']:.3g} images/s")
        parts.append(f"input wait {clock.rates['input_wait']:.0%}")
    if clock.eta_seconds is not None:
        parts.append(f"ETA {format_duration(clock.eta_seconds)}")
    return "  ".join(parts)


class ProgressLine(standard_logging.Filter):
    """A terminal line that is redrawn in place.

    The line is erased before each log message, and the next `draw` prints it below the message. To intercept messages,
    this class is a filter, which is installed on all log handlers until `close`.

    Args:
        stream: output stream of the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._drawn = False
        self._handlers = [logging.get_absl_handler(), *standard_logging.getLogger().handlers]
        for handler in self._handlers:
            handler.addFilter(self)

    def draw(self, text: str) -> None:
        """Replaces the line with `text`, truncated to the width of the terminal."""
        width = shutil.get_terminal_size().columns - 1
        self._write(f"\r\x1b[K{text[:width]}")
        self._drawn = True

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Erases the line before a log message is written. Accepts every record."""
        del record
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False
        return True

    def close(self) -> None:
        """Leaves the line on the terminal, moves to the next line and removes the filter."""
        if self._drawn:
            self._write("\n")
            self._drawn = False
        for handler in self._handlers:
            handler.removeFilter(self)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
