"""Background writer of the best model of a training run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from caption_jax.errors import MissingFileError, UserError
from caption_jax.runs.artifact import (
    Pointer,
    artifact_folder,
    artifact_steps,
    pointer_step,
    pointer_to,
    read_pointer,
    verify_artifact,
    write_artifact,
    write_pointer,
)
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import Weights, host_copy

PyTree = Any

_POLL_SECONDS = 0.25


class ArtifactWriter:
    """Writes artifacts in the background. The workdir points to an artifact once the checkpoint of its step is saved.

    This order ensures that after a crash the workdir points to the best model according to the newest checkpoint, or to
    the previous best model, which `resume` corrects. Only process 0 writes files.

    Args:
        workdir: workdir of the run.
        description: description of the run.
        is_saved: returns whether the checkpoint of a step is complete.
        max_models: number of models to keep: the best model, the previous one for concurrent readers, and older ones.
    """

    def __init__(
        self,
        workdir: epath.Path,
        description: RunDescription,
        is_saved: Callable[[int], bool],
        max_models: int = 2,
    ):
        self._workdir, self._description, self._is_saved = workdir, description, is_saved
        self._max_models = max_models
        self._is_main = jax.process_index() == 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="artifact")
        self._job: Future[None] | None = None
        self._closing = threading.Event()

    def write(self, step: int, variables: PyTree) -> None:
        """Starts writing a model; returns as soon as the device buffers of `variables` may be reused.

        Raises:
            OSError: the previous model could not be written.
        """
        if not self._is_main:
            return
        self._finish_job()
        weights = Weights(host_copy(variables), step)
        self._job = self._pool.submit(self._write_when_saved, weights)

    def resume(self, step: int, best_step: int, read_best: Callable[[], Weights]) -> None:
        """Makes the artifacts of the workdir consistent with the checkpoint that the run resumes from.

        Args:
            step: step of the checkpoint. Artifacts of later steps are deleted.
            best_step: step of the best model so far, as recorded in the checkpoint.
            read_best: reads the best weights. All processes call it if no artifact contains them.
        """
        has_artifact = self._is_main and self._point_to(best_step)
        if jax.process_count() > 1:
            has_artifact = bool(multihost_utils.broadcast_one_to_all(np.asarray(has_artifact)))
        if not has_artifact:
            weights = read_best()
            if self._is_main:
                variables = host_copy(weights.variables)
                self._switch(write_artifact(self._workdir, self._description, Weights(variables, weights.step)))
        self.delete_after(step)

    def delete_after(self, step: int) -> None:
        """Deletes artifacts of steps after `step`, which the run will repeat."""
        if self._is_main:
            self._delete([later for later in artifact_steps(self._workdir) if later > step])

    def check(self) -> None:
        """Raises the error of a model that could not be written. Does not wait."""
        if self._job is not None and self._job.done():
            self._finish_job()

    def close(self) -> None:
        """Waits for the model being written. The workdir points to it only if its checkpoint has been saved."""
        self._closing.set()
        self._pool.shutdown()
        self._finish_job()

    def has_intact(self, step: int) -> bool:
        """Returns whether the artifact of a step exists and matches its checksums. Logs the damage if it does not."""
        folder = artifact_folder(self._workdir, step)
        if not folder.exists():
            return False
        try:
            verify_artifact(folder)
        except MissingFileError:  # a killed run may have left an incomplete folder
            return False
        except UserError as error:
            logging.warning("%s; it is written again from a checkpoint", str(error).partition(": ")[0])
            return False
        return True

    def _point_to(self, step: int) -> bool:
        """Points the workdir to the artifact of a step; returns False if it is missing or damaged."""
        if not self.has_intact(step):
            return False
        folder = artifact_folder(self._workdir, step)
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
        steps = [step for step in artifact_steps(self._workdir) if step <= pointer_step(pointer)]
        self._delete(steps[: -self._max_models])

    def _delete(self, steps: list[int]) -> None:
        for step in steps:
            artifact_folder(self._workdir, step).rmtree()

    def _finish_job(self) -> None:
        """Waits for the model being written; raises any exception of the background thread."""
        if self._job is not None:
            self._job.result()
            self._job = None
