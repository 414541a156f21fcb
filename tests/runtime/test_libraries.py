"""Logging: libraries log only warnings."""

from __future__ import annotations

import pytest
from absl import logging

from caption_jax.runtime.libraries import quiet_libraries


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        ("/lib/site-packages/orbax/checkpoint/manager.py", "INFO", False),
        ("/lib/site-packages/orbax/checkpoint/manager.py", "WARNING", True),
        ("/home/me/jax/caption_jax/training/loop.py", "INFO", True),
        ("/lib/site-packages/clu/metric_writers/logging_writer.py", "INFO", True),
    ],
)
def test_the_log_has_our_messages_and_warnings_of_libraries(path, level, shown):
    handler = logging.get_absl_handler()
    before = list(handler.filters)
    quiet_libraries()
    record = logging.logging.makeLogRecord({"pathname": path, "levelno": logging.logging.getLevelNamesMapping()[level]})
    assert bool(handler.filter(record)) is shown
    handler.filters[:] = before
