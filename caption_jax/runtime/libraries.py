"""Log output of third-party libraries."""

from __future__ import annotations

import logging as standard_logging
import re

from absl import logging


class _LibraryFilter(standard_logging.Filter):
    """Drops the informational messages of libraries, but not their warnings and errors."""

    _PATH = re.compile(r"[/\\](site|dist)-packages[/\\](orbax|tensorflow_datasets|jax|grain|etils)[/\\]")

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return record.levelno > standard_logging.INFO or not self._PATH.search(record.pathname)


_LIBRARY_FILTER = _LibraryFilter()


def quiet_libraries() -> None:
    """Hides the informational messages of libraries, such as the dozens that Orbax logs per checkpoint. Idempotent."""
    logging.get_absl_handler().addFilter(_LIBRARY_FILTER)  # no-op if already added
