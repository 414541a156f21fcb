"""Profiling of selected training steps, for TensorBoard's profile tab."""

from __future__ import annotations

import jax
from absl import logging
from etils import epath

from caption_jax.specs import ProfileSpec


class Trace:
    """Traces `config.train.profile.steps` steps after the first `start`, as many of them as the run makes.

    Args:
        folder: directory that the trace is written to.
        profile: `config.train.profile`.
    """

    def __init__(self, folder: epath.Path, profile: ProfileSpec):
        self._folder = folder
        self._steps = range(profile.start, profile.start + profile.steps)
        self._running = False

    def before_step(self, made: int, state: object) -> None:
        """Starts or ends the trace if it is due, after `made` steps that led to `state`."""
        if made in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif made not in self._steps and self._running:
            jax.block_until_ready(state)  # the last steps may still be running
            self.close()

    def close(self) -> None:
        """Ends the trace if the run ends before it does."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logging.info("profile of steps %d to %d in %s", self._steps.start + 1, self._steps.stop, self._folder)
