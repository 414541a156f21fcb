"""Displays of progress on stderr: bars on a terminal, and lines at intervals elsewhere."""

from __future__ import annotations

import abc
import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from caption_jax.telemetry.progress import Display, Phase

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

_DELAY = 0.3  # seconds before the first bar is drawn, so that short commands neither draw one nor import rich
_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 10.0
_LINE_FRACTION = 0.02  # in long phases, the interval between lines is this fraction of the elapsed time
_BAR_WIDTH = 20
_MIN_WIDTH_FOR_BARS = 72  # columns of the terminal
_DUMB_TERMINALS = ("dumb", "unknown")  # values of TERM for terminals that cannot erase text


def open_display(*, lines: bool = True) -> Display:
    """Returns a display on stderr.

    Args:
        lines: whether to print lines if stderr is not a terminal.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") not in _DUMB_TERMINALS:
        return TerminalDisplay()
    return LineDisplay() if lines else Display()


class _ThreadedDisplay(Display, abc.ABC):
    """A display that is updated by a thread, which starts with the first phase."""

    def __init__(self, interval: float) -> None:
        self._phases: list[Phase] = []
        self._interval = interval
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _begin(self, phase: Phase) -> None:
        self._phases.append(phase)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()

    def _end(self, phase: Phase) -> None:
        self._phases.remove(phase)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal or the file was closed
            while not self._closed.wait(self._interval):
                self._update()

    @abc.abstractmethod
    def _update(self) -> None:
        """Called at intervals by the thread."""


class LineDisplay(_ThreadedDisplay):
    """Prints a line about the innermost phase at intervals of ten seconds, or of 2 % of its duration if it is longer.

    12:03:41 features: 320/1,350 images (0:26, ETA 1:23)
    """

    def __init__(self, seconds: float = _LINE_SECONDS) -> None:
        super().__init__(interval=seconds / 10)
        self._seconds = seconds
        self._last_line = time.monotonic()

    def _begin(self, phase: Phase) -> None:
        if not self._phases:
            self._last_line = time.monotonic()
        super()._begin(phase)

    def _update(self) -> None:
        phases = list(self._phases)
        if not phases:
            return
        interval = max(self._seconds, _LINE_FRACTION * phases[-1].elapsed)
        if time.monotonic() - self._last_line >= interval:
            self._last_line = time.monotonic()
            print(time.strftime("%H:%M:%S"), phases[-1], file=sys.stderr, flush=True)


class TerminalDisplay(_ThreadedDisplay):
    """Draws a line per phase at the bottom of the terminal: a bar with the remaining time, or a spinner.

    While it is open, `sys.stderr` (and `sys.stdout`, if it is the same terminal) print complete lines above the bars.
    The cursor stays visible, because a killed process could not restore it.

    Attributes:
        lock: held while the display writes to the terminal.
    """

    def __init__(self) -> None:
        super().__init__(interval=_REFRESH_SECONDS)
        self._terminal = sys.stderr
        is_unicode = (sys.stderr.encoding or "").lower().startswith("utf")
        self._spinner, self._bar = ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "━─") if is_unicode else ("|/-\\", "#-")
        self.lock = threading.RLock()
        self._live: Live | None = None
        self._restored = {"stderr": sys.stderr}
        if _is_same_terminal(sys.stdout, sys.stderr):
            self._restored["stdout"] = sys.stdout
        self._streams = {name: _AboveBars(stream, self) for name, stream in self._restored.items()}
        for name, stream in self._streams.items():
            setattr(sys, name, stream)

    def close(self) -> None:
        """Erases the bars and restores `sys.stderr` and `sys.stdout`."""
        super().close()
        with self.lock:
            if self._live is not None:
                live, self._live = self._live, None
                with contextlib.suppress(OSError, ValueError):
                    live.stop()
            for name, stream in self._restored.items():
                self._streams[name].write_incomplete_line()
                if getattr(sys, name) is self._streams[name]:
                    setattr(sys, name, stream)

    @property
    def has_bars(self) -> bool:
        """Whether bars are being drawn."""
        return self._live is not None

    def print_above(self, text: str) -> None:
        """Prints complete lines above the bars."""
        from rich.segment import Segment, Segments

        with self.lock:
            self._live.console.print(Segments([Segment(text)]), end="", crop=False)  # tabs and long lines as they are

    def _update(self) -> None:
        with self.lock:
            if self._closed.is_set():
                return
            if self._live is not None:
                self._live.refresh()
                return
        if any(phase.elapsed >= _DELAY for phase in list(self._phases)):
            live = _make_live(self._terminal, self._render)  # imports rich, while other threads may print
            with self.lock:
                if not self._closed.is_set():
                    live.start(refresh=True)
                    self._live = live

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        phases = list(self._phases)
        if not phases:
            return Text(" ")  # one line, which `Live.stop` can erase
        width = max(len(phase.description) for phase in phases)
        return Group(*(self._render_phase(phase, width) for phase in phases))

    def _render_phase(self, phase: Phase, width: int) -> Text:
        """Returns one line, which is truncated at the width of the terminal."""
        from rich.text import Text

        frame = self._spinner[int(phase.elapsed / _REFRESH_SECONDS) % len(self._spinner)]
        line = Text(f"{frame} {phase.description:<{width}}  ", no_wrap=True, overflow="ellipsis")
        if phase.total is not None:
            if self._live is None or self._live.console.width >= _MIN_WIDTH_FOR_BARS:
                full = _BAR_WIDTH * phase.completed // max(phase.total, 1)
                done, remaining = self._bar
                line.append(done * full, "green").append(remaining * (_BAR_WIDTH - full), "bright_black").append("  ")
            line.append(f"{phase.describe_count()}  ")
        return line.append(phase.describe_time()).append(f"  {phase.text}", "dim")


class _AboveBars:
    """A replacement of `sys.stdout` or `sys.stderr` that prints complete lines above the bars.

    All other attributes are those of the replaced stream.
    """

    def __init__(self, stream: TextIO, display: TerminalDisplay) -> None:
        self._stream, self._display = stream, display
        self._incomplete = ""

    def write(self, text: str) -> int:
        """Writes text; while there are bars, the last line is held back until it is complete."""
        with self._display.lock:
            if not self._display.has_bars:
                self._stream.write(self._incomplete + text)
                self._incomplete = ""
                return len(text)
            lines, newline, self._incomplete = (self._incomplete + text).rpartition("\n")
            if newline:
                self._display.print_above(lines + newline)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def write_incomplete_line(self) -> None:
        """Writes what was held back."""
        self._stream.write(self._incomplete)
        self._incomplete = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _make_live(terminal: TextIO, render: Any) -> Live:
    from rich.console import Console
    from rich.live import Live

    class VisibleCursorConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    console: Console = VisibleCursorConsole(file=terminal, force_terminal=True, highlight=False, markup=False)
    return Live(
        get_renderable=render,
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _is_same_terminal(first: TextIO, second: TextIO) -> bool:
    try:
        return first.isatty() and os.fstat(first.fileno()).st_rdev == os.fstat(second.fileno()).st_rdev
    except (OSError, ValueError):  # a stream without a file, or a closed one
        return False
