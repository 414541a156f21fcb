"""Progress of the long phases of a command.

Functions with long phases take a `Display` and open a phase around each of them. How a phase is shown is up to the
display: as a bar on a terminal, as a line every few seconds in a log file (`progress_displays.py`), or, by default,
not at all.

    with display.phase("features", total=len(images), unit="images") as phase:
        for batch in batches:
            ...
            phase.advance(len(batch))
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from caption_jax.telemetry.clock import Clock, format_duration
from input_pipeline.terminal_text import escape

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Phase:
    """The state of one phase.

    Args:
        description: what the command is doing, such as "features".
        total: amount of work; None if it is unknown, as for a compilation.
        unit: unit of `total`, such as "images".
        completed: work that was completed before the phase started, as in a resumed run.
        text: additional text, such as the loss.
        now: function that returns a monotonic time in seconds.

    Attributes:
        completed: completed work, at most `total`.
        text: additional text, which `advance` can replace.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "",
        *,
        completed: int = 0,
        text: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.total, self.unit = escape(description), total, unit
        self.completed, self.text = completed, text
        self._now, self._started = now, now()
        self._first: tuple[int, float] | None = None  # completed work and time of the first call of `advance`

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """Adds completed work, and replaces the additional text unless it is None."""
        self.completed += count
        if self.total is not None:
            self.completed = min(self.completed, self.total)
        if text is not None:
            self.text = text
        if self._first is None:
            self._first = self.completed, self._now()

    @property
    def elapsed(self) -> float:
        """Seconds since the phase started."""
        return self._now() - self._started

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the average rate so far; None if unknown.

        The time before the first call of `advance` is not counted, because it includes compilation.
        """
        if self.total is None or self._first is None:
            return None
        first_completed, first_time = self._first
        done = self.completed - first_completed
        return (self.total - self.completed) * (self._now() - first_time) / done if done > 0 else None

    def describe_count(self) -> str:
        """Formats the completed work as "320/1,350 images"; "" if the total is unknown."""
        return "" if self.total is None else f"{self.completed:,}/{self.total:,} {self.unit}".rstrip()

    def describe_time(self) -> str:
        """Formats the elapsed and the remaining time as "0:26, ETA 1:23"."""
        eta = self.eta_seconds
        return format_duration(self.elapsed) + ("" if eta is None else f", ETA {format_duration(eta)}")

    def __str__(self) -> str:
        parts = [self.description + ":", self.describe_count(), self.text, f"({self.describe_time()})"]
        return " ".join(filter(None, parts))


class Display:
    """A display that shows nothing, and the base class of the others. Leaving its `with` block closes it."""

    @contextlib.contextmanager
    def phase(
        self, description: str, total: int | None = None, unit: str = "", *, completed: int = 0, text: str = ""
    ) -> Iterator[Phase]:
        """Shows a phase until the end of the `with` block. Phases may be nested. See `Phase` for the arguments."""
        phase = Phase(description, total, unit, completed=completed, text=text)
        self._begin(phase)
        try:
            yield phase
        finally:
            self._end(phase)

    def around_first_call(
        self, function: Callable[Parameters, Result], description: str
    ) -> Callable[Parameters, Result]:
        """Returns a function whose first call is shown as a phase, for jitted functions, which it compiles."""
        is_first = True

        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            nonlocal is_first
            if not is_first:
                return function(*args, **kwargs)
            with self.phase(description):
                result = function(*args, **kwargs)
            is_first = False
            return result

        return call

    def close(self) -> None:
        """Ends the display. Idempotent."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin(self, phase: Phase) -> None:
        """Called when a phase starts."""

    def _end(self, phase: Phase) -> None:
        """Called when a phase ends."""


SILENT = Display()


def describe_rates(loss: float, clock: Clock) -> str:
    """Formats the state of a training run as "loss 2.3451, 412 images/s, input wait 3%"."""
    parts = [f"loss {loss:.4f}"]
    if clock.rates:
        parts += [f"{clock.rates['images_per_second']:.3g} images/s", f"input wait {clock.rates['input_wait']:.0%}"]
    return ", ".join(parts)
