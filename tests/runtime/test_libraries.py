"""Libraries log only warnings and errors."""

from __future__ import annotations

import pytest
from absl import logging

from caption_jax.runtime.libraries import quiet_libraries


@pytest.mark.parametrize(
    ("path", "level", "is_logged"),
    [
        ("/lib/site-packages/orbax/checkpoint/manager.py", "INFO", False),
        ("/lib/site-packages/orbax/checkpoint/manager.py", "WARNING", True),
        ("/home/me/jax/caption_jax/training/loop.py", "INFO", True),
        ("/lib/site-packages/clu/metric_writers/logging_writer.py", "INFO", True),
    ],
)
def test_the_log_contains_messages_from_this_project_and_warnings_from_libraries(path, level, is_logged):
    handler = logging.get_absl_handler()
    before = list(handler.filters)
    quiet_libraries()
    record = logging.logging.makeLogRecord({"pathname": path, "levelno": logging.logging.getLevelNamesMapping()[level]})
    assert bool(handler.filter(record)) is is_logged
    handler.filters[:] = before
