"""Orbax checkpoints of a run.

Layout in the workdir:

    checkpoints/last/<step>/   weights (for inference), train (optimizer state and raw parameters), records (JSON)
    checkpoints/best/<step>/   weights and their validation metrics; the highest step is the best

This module does not import the optimizer or the model, so that weights can be read quickly for inference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.runs.weights import CHECKPOINT_CHOICES, Weights, rename_modules
from caption_jax.specs.renamed_keys import RENAMED_MODULES
from input_pipeline.files import absolute_path, storage_path

PyTree = Any

_BEST_METRICS = "best_metrics"  # record of a checkpoint whose weights are the best so far


@dataclass(frozen=True)
class RestoredState:
    """Contents of a checkpoint: two pytrees of arrays, the JSON records and the step."""

    weights: PyTree
    train: PyTree
    records: dict[str, Any]
    step: int


class Checkpoints:
    """Writes the last and best checkpoints of a run in the background, and restores the last one.

    Checkpoints are committed by a single rename after all files are written, so a killed run leaves only complete
    checkpoints. Each `save_best` must be followed by a `save` with the same step. The two are written at the same time,
    in any order. If the run is killed before the best weights are complete, `restore` writes them again from the last
    checkpoint, which has the same weights. No matter when the run is killed, the two retained best checkpoints then
    include the one that the newest checkpoint records as the best.
    """

    def __init__(self, workdir: str | epath.Path):
        folder = absolute_path(workdir) / "checkpoints"
        self._last = _make_manager(folder / "last")
        self._best = _make_manager(folder / "best")
        self._best_metrics: tuple[int, dict[str, float]] | None = None  # arguments of the last `save_best`

    def save(self, step: int, weights: PyTree, train: PyTree, records: Mapping[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns as soon as the arrays and records may be modified."""
        if step == self._last.latest_step():
            return
        records = copy.deepcopy(dict(records))  # written later, when the run may have modified them
        if self._best_metrics is not None and self._best_metrics[0] == step:
            records[_BEST_METRICS] = self._best_metrics[1]
        else:
            self._best.wait_until_finished()  # only a checkpoint of the same step can replace the best weights
        records = ocp.args.JsonSave(records)
        items = {"weights": ocp.args.StandardSave(weights), "train": ocp.args.StandardSave(train)}
        self._last.save(step, args=ocp.args.Composite(records=records, **items), force=True)

    def save_best(self, step: int, weights: PyTree, metrics: Mapping[str, float]) -> None:
        """Starts writing the best weights so far, with their metrics."""
        self._last.wait_until_finished()  # otherwise, the best weights that it refers to might be deleted
        self._delete_best_from(step)
        self._best_metrics = step, dict(metrics)
        items = {"weights": ocp.args.StandardSave(weights), "records": ocp.args.JsonSave(dict(metrics))}
        self._best.save(step, args=ocp.args.Composite(**items), force=True)

    def _delete_best_from(self, step: int) -> None:
        """Deletes best weights that a crashed run wrote at steps that are about to be repeated."""
        for later in [saved for saved in self._best.all_steps() if saved >= step]:
            self._best.delete(later)

    def restore(self, weights: PyTree, train: PyTree) -> RestoredState | None:
        """Restores the newest checkpoint; returns None if there is no checkpoint.

        Args:
            weights: shapes, dtypes and shardings of the weights.
            train: shapes, dtypes and shardings of the other arrays.

        Raises:
            ValueError: the paths or shapes of the stored arrays differ from those of `weights` and `train`.
        """
        step = self._last.latest_step()
        if step is None:
            return None
        names = self._former_names(step)
        weights, train = (rename_modules(tree, names) for tree in (weights, train))
        template = {"weights": ocp.args.StandardRestore(weights), "train": ocp.args.StandardRestore(train)}
        try:
            items = self._last.restore(step, args=ocp.args.Composite(records=ocp.args.JsonRestore(), **template))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkdirError(
                f"the checkpoint of step {step} in {self._last.directory} does not match the parameters of this "
                "config: revert the change to the config, or train in a new workdir with "
                f"--config.init_from={self._last.directory.parent.parent}. First mismatch: {str(error)[:1000]}"
            ) from error
        self._delete_best_from(step + 1)
        weights, train = (rename_modules(items[name], RENAMED_MODULES) for name in ("weights", "train"))
        records = dict(items["records"])
        metrics = records.pop(_BEST_METRICS, None)
        if metrics is not None and step not in self._best.all_steps():
            self.save_best(step, weights, metrics)
            self._best.wait_until_finished()
        return RestoredState(weights, train, records, step)

    def _former_names(self, step: int) -> dict[str, str]:
        """Returns current name -> former name for modules that an older release stored under their former names."""
        stored = self._last.item_metadata(step)["weights"].tree["params"]
        return {current: former for former, current in RENAMED_MODULES.items() if former in stored}

    def is_saved(self, step: int) -> bool:
        """Returns whether a complete checkpoint of `step` exists. Thread-safe."""
        return step in ocp.utils.checkpoint_steps(self._last.directory)

    def wait(self) -> None:
        """Blocks until all pending checkpoints are written."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for pending checkpoints, then stops the background threads."""
        self._last.close()
        self._best.close()


def read_weights(
    source: str | epath.Path, which: str = "best", sharding: jax.sharding.Sharding | None = None
) -> Weights:
    """Reads weights from the checkpoints of a run; for inference, `loading.load_model` is faster.

    Args:
        source: workdir of the run.
        which: "best" (by validation metric, or the last if no evaluation has run yet) or "last".
        sharding: sharding of the arrays; NumPy arrays if None.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: `which` is neither "best" nor "last".
    """
    if which not in CHECKPOINT_CHOICES:
        raise ConfigError(f"unknown checkpoint {which!r}; expected 'best' or 'last'")
    folder = absolute_path(source) / "checkpoints"
    for name in CHECKPOINT_CHOICES[which]:
        if steps := ocp.utils.checkpoint_steps(folder / name):
            return Weights(_read_item(folder / name / str(max(steps)), sharding), max(steps))
    raise MissingFileError(f"no checkpoint in {folder}: is {source} the --workdir of a run that has saved one?")


def has_checkpoint(workdir: str | epath.Path) -> bool:
    """Returns whether `workdir` contains a checkpoint to resume from."""
    return bool(ocp.utils.checkpoint_steps(storage_path(workdir) / "checkpoints" / "last"))


def _read_item(folder: epath.Path, sharding: jax.sharding.Sharding | None) -> PyTree:
    def restore_target(saved: Any) -> Any:
        if sharding is None:
            return np.empty(saved.shape, saved.dtype)
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_make_handlers())) as checkpointer:
        template = jax.tree.map(restore_target, checkpointer.metadata(folder).item_metadata["weights"].tree)
        items = checkpointer.restore(folder, ocp.args.Composite(weights=ocp.args.StandardRestore(template)))
        return rename_modules(items["weights"], RENAMED_MODULES)


def _make_manager(folder: epath.Path) -> ocp.CheckpointManager:
    # The prefix distinguishes the barriers of checkpoints that are written at the same time.
    processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, multiprocessing_options=processes
    )
    return ocp.CheckpointManager(folder, options=options, item_handlers=_make_handlers())


def _make_handlers() -> dict[str, ocp.CheckpointHandler]:
    """Creates the Orbax handlers of the items in a checkpoint."""
    return {
        "weights": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "records": ocp.JsonCheckpointHandler(),
    }
