"""The disk space that a training run needs, for a check at its start and for messages about a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from caption_jax.errors import StorageError, UserError, WorkdirError
from caption_jax.runs.lock_files import identify_folder
from input_pipeline.disk_faults import format_bytes, reported_disk_faults
from input_pipeline.files import is_on_bucket

PyTree = Any

_KEPT = 2  # checkpoints, best weights and models that are kept; one more of each exists while it is written


class DiskUse:
    """Sizes of the checkpoints and models of a run.

    Args:
        workdir: workdir of the run.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir, self._folder_id = workdir, identify_folder(workdir)
        self._weights_bytes = self._checkpoint_bytes = 0

    @contextlib.contextmanager
    def reported_faults(self) -> Iterator[DiskUse]:
        """Replaces errors in the `with` block that are caused by a fault of a disk; see `reported_disk_faults`.

        Raises:
            StorageError: the fault; with the size of the checkpoint or model if the disk is full.
            WorkdirError: the workdir was deleted.
        """
        try:
            with reported_disk_faults(self._find_needed_bytes, self._workdir):
                yield self
        except FileNotFoundError as error:
            folder_id = identify_folder(self._workdir)
            if isinstance(error, UserError) or (folder_id and folder_id == self._folder_id):
                raise
            raise WorkdirError(f"--workdir={self._workdir} was deleted during training") from error

    def check(self, weights: PyTree, train: PyTree, *, is_complete: bool = False, kept_models: int = _KEPT) -> None:
        """Checks that the disk has space for the checkpoints and models of the rest of the run.

        Does nothing for a bucket.

        Args:
            weights: shapes and dtypes of the weights.
            train: shapes and dtypes of the other arrays of a checkpoint.
            is_complete: whether the run has no more steps, so that it writes no more checkpoints.
            kept_models: number of models that are kept.

        Raises:
            StorageError: there is no space for the first checkpoint. If there is space for it, but not for all that
                will exist at the same time, a warning is logged.
        """
        self._weights_bytes = _count_bytes(weights)
        self._checkpoint_bytes = self._weights_bytes + _count_bytes(train)
        if is_on_bucket(self._workdir) or is_complete:
            return
        first = self._checkpoint_bytes + 2 * self._weights_bytes  # the best weights, and the model
        older_models = (kept_models - _KEPT) * self._weights_bytes
        peak = (_KEPT + 1) * first + older_models - self._measure_existing()
        free = shutil.disk_usage(self._workdir).free
        details = (
            f"{format_bytes(self._checkpoint_bytes)} per checkpoint, {format_bytes(self._weights_bytes)} each for the "
            f"best weights and the model), but only {format_bytes(free)} are free"
        )
        if free < first:
            raise StorageError(
                f"--workdir={self._workdir}: the disk has no space for a checkpoint: {format_bytes(first)} are needed "
                f"({details}: free space, or use another --workdir"
            )
        if free < peak:
            logging.warning(
                "the disk of %s will be full: checkpoints and models will need up to %s (%s",
                *(self._workdir, format_bytes(peak), details),
            )

    def _measure_existing(self) -> int:
        """Returns the size of the checkpoints and models in the workdir, which newer ones will replace."""
        folders = [self._workdir / "checkpoints", *self._workdir.glob("model-*")]
        files = (os.path.join(root, name) for folder in folders for root, _, names in os.walk(folder) for name in names)
        total = 0
        for file in files:
            with contextlib.suppress(OSError):
                total += os.path.getsize(file)
        return total

    def _find_needed_bytes(self, path: str) -> int:
        relative = path.removeprefix(f"{self._workdir}/")
        if relative.startswith("checkpoints/last"):
            return self._checkpoint_bytes
        return self._weights_bytes if relative.startswith(("checkpoints/best", "model-")) else 0


def _count_bytes(tree: PyTree) -> int:
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
