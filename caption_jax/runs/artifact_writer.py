"""The best model of a run that is training, kept in its workdir as an artifact."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from caption_jax.runs.artifact import (
    Pointer,
    artifact_folder,
    artifact_steps,
    is_complete,
    pointer_to,
    read_pointer,
    step_of,
    write_artifact,
    write_pointer,
)
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import Weights, host_copy

PyTree = Any

_KEPT = 2  # the best model, and the one before for whoever is reading it
_POLL_SECONDS = 0.25


class ArtifactWriter:
    """Writes models in the background, and switches to each when the run's own checkpoint of its step is safe.

    In that order a crash at any moment leaves the pointer at a model that the newest checkpoint calls the best, or at
    the one before it, which `resume` puts right. The first process writes; others do nothing.

    Args:
        workdir: of the run.
        description: of the run.
        is_saved: whether the checkpoint of a step, from which the run would go on, is complete.
    """

    def __init__(self, workdir: epath.Path, description: RunDescription, is_saved: Callable[[int], bool]):
        self._workdir, self._description, self._is_saved = workdir, description, is_saved
        self._is_main = jax.process_index() == 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="artifact")
        self._job: Future[None] | None = None
        self._closing = threading.Event()

    def write(self, step: int, variables: PyTree) -> None:
        """Starts writing a model; returns when the device may reuse the buffers of its variables.

        Raises:
            OSError: the model before this one could not be written.
        """
        if not self._is_main:
            return
        self._finish_job()
        weights = Weights(host_copy(variables), step)
        self._job = self._pool.submit(self._write_when_saved, weights)

    def resume(self, step: int, best_step: int, read: Callable[[], Weights]) -> None:
        """Brings the workdir's models in line with the checkpoint that the run goes on from.

        Args:
            step: of the checkpoint. Models of later steps are deleted.
            best_step: of the best model so far, in the view of the checkpoint.
            read: reads the best weights; called where they are in no artifact, by all processes alike.
        """
        intact = self._is_main and self._point_to(best_step)
        if jax.process_count() > 1:
            intact = bool(multihost_utils.broadcast_one_to_all(np.asarray(intact)))
        if not intact:
            weights = read()
            if self._is_main:
                variables = host_copy(weights.variables)
                self._switch(write_artifact(self._workdir, self._description, Weights(variables, weights.step)))
        self.forget_after(step)

    def forget_after(self, step: int) -> None:
        """Deletes models of steps that the run makes (once more)."""
        if self._is_main:
            self._delete([later for later in artifact_steps(self._workdir) if later > step])

    def close(self) -> None:
        """Waits for the model in the making. It is not switched to if its checkpoint has not been saved by now."""
        self._closing.set()
        self._pool.shutdown()
        self._finish_job()

    def _point_to(self, step: int) -> bool:
        """Points to the model of a step; says whether there is a complete one."""
        folder = artifact_folder(self._workdir, step)
        if not is_complete(folder):
            return False
        pointer = pointer_to(folder)
        if read_pointer(self._workdir) != pointer:
            write_pointer(self._workdir, pointer)
        return True

    def _write_when_saved(self, weights: Weights) -> None:
        pointer = write_artifact(self._workdir, self._description, weights)
        while not self._is_saved(weights.step):
            if self._closing.wait(_POLL_SECONDS) and not self._is_saved(weights.step):
                return
        self._switch(pointer)

    def _switch(self, pointer: Pointer) -> None:
        write_pointer(self._workdir, pointer)
        self._delete([step for step in artifact_steps(self._workdir) if step <= step_of(pointer)][:-_KEPT])

    def _delete(self, steps: list[int]) -> None:
        for step in steps:
            artifact_folder(self._workdir, step).rmtree()

    def _finish_job(self) -> None:
        """Waits for the model in the making; raises what went wrong."""
        if self._job is not None:
            self._job.result()
            self._job = None
