"""A warning if waiting for images, and not the devices, limits a run."""

from __future__ import annotations

import os
from collections.abc import Mapping

from absl import logging

from input_pipeline.data_spec import DataSpec

_THRESHOLD = 0.2  # fraction of the time spent waiting for input
_LAPS = 3  # consecutive log points above the threshold; the first one of a process, which compiles, does not count


class InputWaitWarning:
    """Logs one warning when the input limits a run.

    Args:
        data: `config.data`, which determines the remedy.
    """

    def __init__(self, data: DataSpec) -> None:
        self._remedy = describe_remedy(data, os.cpu_count() or 1)
        self._waits: list[float] | None = None  # of the last log points; None before the first one
        self._is_done = False

    def update(self, rates: Mapping[str, float]) -> None:
        """Adds the result of `Clock.tick` at a log point."""
        if self._waits is None:
            self._waits = []
            return
        wait = rates.get("input_wait", 0.0)
        self._waits = [*self._waits, wait] if wait > _THRESHOLD else []
        if len(self._waits) == _LAPS and not self._is_done:
            self._is_done = True
            mean = sum(self._waits) / _LAPS
            logging.warning("input limits this run: %.0f%% of the time is spent waiting. %s", 100 * mean, self._remedy)


def describe_remedy(data: DataSpec, cores: int) -> str:
    """Returns what to change in the config so that input is faster.

    Args:
        data: `config.data`.
        cores: number of processor cores.
    """
    if data.feature_cache.stage:
        return "Features are read from disk: set config.data.feature_cache.folder to a faster disk"
    if data.pixel_cache.use == "always":
        return "Pixels are read from disk: set config.data.pixel_cache.folder to a faster disk"
    remedies = []
    if data.workers < cores:
        remedies.append(f"raise config.data.workers (now {data.workers}, on {cores} cores)")
    elif data.worker_type == "threads":
        remedies.append('set config.data.worker_type to "processes"')
    remedies.append('set config.data.pixel_cache.use to "always", so that images are decoded only once')
    return f"To speed it up, {', or '.join(remedies)} (docs/data.md#fast-input)"
