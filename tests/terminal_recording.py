"""Recordings of commands in a pseudo-terminal: what a user sees, and when."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import math
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

_BURST_SECONDS = 0.02  # between chunks of one write


@dataclasses.dataclass(frozen=True)
class Recording:
    """The output of a command in a terminal.

    Attributes:
        status: exit status.
        chunks: seconds since the start of the command, and the bytes that were read at that time.
        seconds: duration of the command.
        size: columns and lines of the terminal.
    """

    status: int
    chunks: list[tuple[float, bytes]]
    seconds: float
    size: tuple[int, int]

    def longest_silence(self) -> float:
        """Returns the longest time without output, in seconds, including the start and the end of the command."""
        times = [0.0, *(seconds for seconds, _ in self.chunks), self.seconds]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def screen(self) -> list[str]:
        """Returns the lines of the terminal at the end, including those that scrolled off, without trailing ones."""
        return render(b"".join(data for _, data in self.chunks), self.size)

    def screens(self) -> list[list[str]]:
        """Returns the visible lines of the terminal after each burst of output, of which a chunk may be a part."""
        screen = pyte.Screen(*self.size)
        stream = pyte.ByteStream(screen)
        screens = []
        next_times = [*(seconds for seconds, _ in self.chunks[1:]), math.inf]
        for (seconds, data), next_time in zip(self.chunks, next_times, strict=True):
            stream.feed(data)
            if next_time - seconds > _BURST_SECONDS:
                screens.append([line.rstrip() for line in screen.display])
        return screens


def render(output: bytes, size: tuple[int, int] = (100, 30)) -> list[str]:
    """Returns the lines that a terminal shows after an output, including those that scrolled off."""
    screen = pyte.HistoryScreen(*size, history=10_000)
    pyte.ByteStream(screen).feed(output)
    history = ["".join(line[column].data for column in range(size[0])) for line in screen.history.top]
    lines = [line.rstrip() for line in [*history, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def record(
    command: Sequence[str],
    *,
    size: tuple[int, int] = (100, 30),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | None = None,
) -> Recording:
    """Runs a command in a pseudo-terminal until it ends.

    Args:
        command: the command and its arguments.
        size: columns and lines of the terminal.
        environment: environment variables; those of this process if None.
        cwd: working directory.
        stdout: file descriptor for stdout; the terminal if None.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    environment = {**(os.environ if environment is None else environment), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):  # a test runner may set them, and they override the size of the terminal
        environment.pop(name, None)
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=terminal,
        stdout=terminal if stdout is None else stdout,
        stderr=terminal,
    )
    os.close(terminal)
    chunks = []
    try:
        while data := _read(controller):
            chunks.append((time.monotonic() - start, data))
        return Recording(process.wait(), chunks, time.monotonic() - start, size)
    finally:
        process.kill()  # no-op if it has ended
        os.close(controller)


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # Linux reports the end of the output as an error
        return b""
