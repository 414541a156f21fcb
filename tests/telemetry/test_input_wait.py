"""One warning, with the remedy, if a run waits for images at several consecutive log points."""

from __future__ import annotations

import logging

import pytest

from caption_jax.telemetry.input_wait import InputWaitWarning, describe_remedy
from input_pipeline.data_spec import DataSpec, FeatureCacheSpec, PixelCacheSpec


@pytest.fixture
def warnings(caplog) -> list[str]:
    """Returns a function that returns the warnings after updates with these waits."""

    def update(*waits: float) -> list[str]:
        caplog.clear()
        warning = InputWaitWarning(DataSpec(workers=1))
        with caplog.at_level(logging.WARNING, logger="absl"):
            for wait in waits:
                warning.update({"input_wait": wait})
        return [record.getMessage() for record in caplog.records]

    return update


def test_a_run_that_waits_is_warned_once(warnings):
    (message,) = warnings(0.0, 0.5, 0.6, 0.4, 0.5, 0.5, 0.5)
    assert message.startswith("input limits this run: 50% of the time is spent waiting. To speed it up, ")


@pytest.mark.parametrize("waits", [(0.9, 0.9, 0.9), (0.5, 0.5, 0.5, 0.1, 0.5, 0.5), (0.1,) * 20])
def test_short_waits_and_the_first_log_point_do_not_count(warnings, waits):
    assert warnings(*waits) == []


def test_the_remedy_depends_on_the_config():
    assert "raise config.data.workers (now 2, on 8 cores)" in describe_remedy(DataSpec(workers=2), 8)
    assert 'config.data.worker_type to "processes"' in describe_remedy(DataSpec(workers=8), 8)
    assert "worker_type" not in describe_remedy(DataSpec(workers=8, worker_type="processes"), 8)
    assert "config.data.pixel_cache.folder" in describe_remedy(DataSpec(pixel_cache=PixelCacheSpec("always")), 8)
    assert "config.data.feature_cache.folder" in describe_remedy(
        DataSpec(feature_cache=FeatureCacheSpec(stage="stem")), 8
    )
