"""Log output of third-party libraries."""

from __future__ import annotations

import logging as standard_logging
import re

from absl import logging


class _RoutineLibraryMessages(standard_logging.Filter):
    """Drops the routine messages of libraries, but not their warnings and errors."""

    _CHATTY = re.compile(r"[/\\](site|dist)-packages[/\\](orbax|tensorflow_datasets|jax|grain|etils)[/\\]")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return record.levelno > standard_logging.INFO or not self._CHATTY.search(record.pathname)


_ROUTINE_LIBRARY_MESSAGES = _RoutineLibraryMessages()


def quiet_libraries() -> None:
    """Hides the informational messages of libraries; Orbax alone logs a page per checkpoint. Idempotent."""
    logging.get_absl_handler().addFilter(_ROUTINE_LIBRARY_MESSAGES)  # no-op if already added
