"""The log: its format, its verbosity, and which messages of libraries it contains."""

from __future__ import annotations

import contextlib
import copy
import logging as standard_logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Literal

from absl import flags, logging

from input_pipeline.disk_faults import find_disk_fault
from input_pipeline.terminal_text import escape_message

Verbosity = Literal["quiet", "normal", "verbose"]

# Read by the C++ code of TensorFlow and XLA, whose start-up messages do not pass through Python's logging. Errors are
# still printed. The note about oneDNN ignores the log level, but TensorFlow prints it only if oneDNN is enabled, and
# only its file formats are used here.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


_NEWLINE = "\n" + " " * len("12:03:41 ")


class LogFormatter(standard_logging.Formatter):
    """Formats messages as "12:03:41 message", with the level if it is above INFO.

    Further lines are indented. Arguments of a message that are text or paths are shown on one line, so no name can
    forge a message, and characters that affect the terminal are shown as escapes.
    """

    def format(self, record: standard_logging.LogRecord) -> str:
        """Returns the message with its prefix."""
        level = f"{record.levelname.lower()}: " if record.levelno > standard_logging.INFO else ""
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(map(_escape_argument, record.args))
        message = escape_message(super().format(record), _NEWLINE)
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{message}"


def _escape_argument(argument: object) -> object:
    return escape_message(argument) if isinstance(argument, str | os.PathLike) else argument


class _LibraryFilter(standard_logging.Filter):
    """Drops the informational messages of installed packages other than this one, but not their warnings and errors.

    Orbax's warning about the duration of a save is also dropped: it depends on the disk, and a run saves in the
    background. So are the tracebacks that Orbax and asyncio log when a disk is full or has failed, because the run
    reports the fault in one line.
    """

    _PATH = re.compile(r"[/\\](site|dist)-packages[/\\](?!(caption_jax|input_pipeline)[/\\])")
    _NOISE = re.compile(r"Waiting for previous save to complete took")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and find_disk_fault(error) is not None:
            return False
        is_library = self._PATH.search(record.pathname) is not None
        is_noise = record.levelno <= standard_logging.INFO or self._NOISE.match(record.getMessage()) is not None
        return not (is_library and is_noise)


_LIBRARY_FILTER = _LibraryFilter()


def set_up_log(verbosity: Verbosity = "normal") -> None:
    """Sets up the log of a command, on stderr. Call before importing JAX, which reads environment variables.

    Args:
        verbosity: "quiet" for warnings and errors, "normal" for this project's messages and the warnings and errors of
            libraries, "verbose" for all messages.
    """
    logging.set_verbosity(logging.WARNING if verbosity == "quiet" else logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(LogFormatter())
    logging.use_absl_handler()
    flags.FLAGS.logtostderr = True  # to the current sys.stderr, which a progress display replaces
    if verbosity == "verbose":
        logging.get_absl_logger().setLevel(standard_logging.DEBUG)
        handler.removeFilter(_LIBRARY_FILTER)
        return
    handler.addFilter(_LIBRARY_FILTER)  # no-op if already added
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _UnraisableHook:
    """A hook for exceptions that cannot be raised, which drops those of TensorStore's threads after a failed save.

    Orbax has then closed the event loop to which the threads report the end of the other writes. All others are passed
    to the previous hook, such as that of `signals.py`.
    """

    def __init__(self, previous: Callable[[sys.UnraisableHookArgs], object]):
        self._previous = previous

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._previous(unraisable)


_STDERR = 2
# Printed by each extension module of JAX's CUDA plug-in, regardless of the log level.
_NO_CUDA_DRIVER = re.compile(
    rb"(WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR\n)?"
    rb"[IW]\d{4} [^\n]*Could not find cuda drivers[^\n]*\n"
)


def without_cuda_driver_messages() -> contextlib.AbstractContextManager[None]:
    """Drops the messages of libraries that there is no CUDA driver; see `without_messages`."""
    return without_messages(_NO_CUDA_DRIVER)


@contextlib.contextmanager
def without_messages(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Drops output of extension modules to stderr, for code in which it has no meaning.

    Other output of the `with` block to stderr appears at its end. With the verbosity "verbose", nothing is dropped.

    Args:
        pattern: the lines to drop, with their line breaks.
    """
    if logging.get_absl_logger().isEnabledFor(standard_logging.DEBUG):
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            file.seek(0)
            os.write(_STDERR, pattern.sub(b"", file.read()))
