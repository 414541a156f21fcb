"""Libraries log warnings only, and leave accelerators to JAX."""

from __future__ import annotations

import pytest
from absl import logging

from caption_jax.runtime.libraries import keep_tensorflow_off_accelerators, quiet_libraries


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        ("/lib/site-packages/orbax/checkpoint/manager.py", "INFO", False),
        ("/lib/site-packages/orbax/checkpoint/manager.py", "WARNING", True),
        ("/home/me/jax/caption_jax/training/loop.py", "INFO", True),
        ("/lib/site-packages/clu/metric_writers/logging_writer.py", "INFO", True),
    ],
)
def test_the_log_is_ours_and_the_warnings_of_libraries(path, level, shown):
    handler = logging.get_absl_handler()
    before = list(handler.filters)
    quiet_libraries()
    record = logging.logging.makeLogRecord({"pathname": path, "levelno": logging.logging.getLevelNamesMapping()[level]})
    assert bool(handler.filter(record)) is shown
    handler.filters[:] = before


def test_tensorflow_is_told_to_leave_accelerators_alone(monkeypatch):
    import tensorflow as tf

    hidden = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
    keep_tensorflow_off_accelerators()
    assert sorted(hidden) == [([], "GPU"), ([], "TPU")]


def test_tensorflow_that_holds_an_accelerator_is_an_error(monkeypatch):
    import tensorflow as tf

    def too_late(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    keep_tensorflow_off_accelerators()  # set up, but without one
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu:0"])
    with pytest.raises(RuntimeError, match="holds a GPU"):
        keep_tensorflow_off_accelerators()
