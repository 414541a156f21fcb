"""Profiling of selected training steps, for TensorBoard's profile tab."""

from __future__ import annotations

import tempfile

import jax
from absl import logging
from etils import epath

from caption_jax.specs import ProfileSpec
from caption_jax.telemetry.bucket_copies import FolderCopy
from input_pipeline.disk_faults import OptionalOutput
from input_pipeline.files import is_on_bucket


class Trace:
    """Traces `config.train.profile.steps` steps after the first `start` steps, or fewer if the run ends earlier.

    Args:
        folder: output directory of the trace.
        profile: `config.train.profile`.
    """

    def __init__(self, folder: epath.Path, profile: ProfileSpec):
        self._folder = folder
        # The profiler writes only to local disks.
        self._local = tempfile.TemporaryDirectory(prefix="profile-") if is_on_bucket(folder) else None
        self._steps = range(profile.start, profile.start + profile.steps)
        self._running = False

    def before_step(self, completed: int, state: object) -> None:
        """Starts or stops the trace before a step.

        Args:
            completed: number of completed steps.
            state: training state after these steps.
        """
        if completed in self._steps and not self._running:
            jax.profiler.start_trace(self._local.name if self._local else self._folder)
            self._running = True
        elif completed not in self._steps and self._running:
            jax.block_until_ready(state)  # the last steps may still be running
            self.close()

    def close(self) -> None:
        """Stops the trace if it is still running."""
        if self._running:
            self._running = False
            with OptionalOutput("the profile is incomplete") as output:
                jax.profiler.stop_trace()
                if self._local is not None:
                    FolderCopy(self._local.name, self._folder).update()
            if not output.has_failed:
                logging.info("profile of steps %d to %d in %s", self._steps.start + 1, self._steps.stop, self._folder)
