"""Third-party libraries in a process that trains: what they log."""

from __future__ import annotations

import logging as standard_logging
import re

from absl import logging


class _RoutineLibraryMessages(standard_logging.Filter):
    """Drops what libraries log about each step of their own work; warnings and errors pass."""

    _CHATTY = re.compile(r"[/\\](site|dist)-packages[/\\](orbax|tensorflow_datasets|jax|grain|etils)[/\\]")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return record.levelno > standard_logging.INFO or not self._CHATTY.search(record.pathname)


_ROUTINE_LIBRARY_MESSAGES = _RoutineLibraryMessages()


def quiet_libraries() -> None:
    """Limits the log to this project's messages and libraries' warnings: Orbax alone logs a page per checkpoint."""
    logging.get_absl_handler().addFilter(_ROUTINE_LIBRARY_MESSAGES)  # adding the same filter twice changes nothing
