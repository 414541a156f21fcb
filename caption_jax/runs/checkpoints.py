"""Orbax checkpoints of a run.

Layout in the workdir:

    checkpoints/last/<step>/   weights (for inference), train (optimizer state and raw parameters), records (JSON)
    checkpoints/best/<step>/   weights and their validation metrics; the highest step is the best
    checkpoints/set_aside/     damaged checkpoints, which are not used (`checkpoint_choice`)

Each checkpoint also contains the checksums of its files (`checkpoint_integrity`).

This module does not import the optimizer or the model, so that weights can be read quickly for inference.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from caption_jax.errors import MissingFileError, WorkdirError
from caption_jax.runs.checkpoint_choice import (
    BEST,
    ITEMS,
    LAST,
    choose_intact,
    list_steps,
    no_intact_checkpoint,
    prepare_to_resume,
    set_damaged_aside,
)
from caption_jax.runs.checkpoint_integrity import find_damage, write_checksums
from caption_jax.runs.late_evaluation import add_result, complete_records
from caption_jax.runs.weights import CHECKPOINT_CHOICES, Weights, check_choice, rename_modules
from caption_jax.specs.renamed_keys import RENAMED_MODULES
from input_pipeline.files import absolute_path, storage_path

PyTree = Any

log = logging.getLogger(__name__)

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

    Args:
        workdir: workdir of the run.
        step: step of the checkpoint to restore; by default, that of the newest intact one. Newer checkpoints are set
            aside (`prepare_to_resume`).
    """

    def __init__(self, workdir: str | epath.Path, step: int | None = None):
        self._folder = absolute_path(workdir) / "checkpoints"
        prepare_to_resume(self._folder, step)
        self._pending: dict[str, int] = {}  # kind -> step of the checkpoint that is being written
        self._last, self._best = (
            _make_manager(self._folder / kind, functools.partial(self._add_checksums, kind)) for kind in (LAST, BEST)
        )
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
        self._last.wait_until_finished()
        self._pending[LAST] = step
        self._last.save(step, args=ocp.args.Composite(records=records, **items), force=True)

    def save_best(self, step: int, weights: PyTree, metrics: Mapping[str, float]) -> None:
        """Starts writing the best weights so far, with their metrics."""
        self._last.wait_until_finished()  # otherwise, the best weights that it refers to might be deleted
        self._delete_best_from(step)
        self._best_metrics = step, dict(metrics)
        items = {"weights": ocp.args.StandardSave(weights), "records": ocp.args.JsonSave(dict(metrics))}
        self._best.wait_until_finished()
        self._pending[BEST] = step
        self._best.save(step, args=ocp.args.Composite(**items), force=True)

    def add_evaluation(self, step: int, progress: Mapping[str, Any], best_metrics: Mapping[str, float] | None) -> None:
        """Adds the result of an evaluation to the checkpoint of its step, if there is one that was saved before it.

        Args:
            step: number of completed steps.
            progress: the records of this name after the evaluation.
            best_metrics: metrics of the weights if they are the best so far.
        """
        if step == self._last.latest_step() and jax.process_index() == 0:
            best = {} if best_metrics is None else {_BEST_METRICS: dict(best_metrics)}
            add_result(self._folder / LAST / str(step), {"progress": dict(progress), **best})

    def _add_checksums(self, kind: str) -> None:
        """Writes the checksums of a checkpoint whose files are complete, but which is not committed yet."""
        if jax.process_index() == 0:
            step = str(self._pending[kind])
            for folder in (self._folder / kind).iterdir():
                if folder.name == step or folder.name.startswith(f"{step}.orbax-checkpoint-tmp"):
                    write_checksums(folder)

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
            WorkdirError: the paths or shapes of the stored arrays differ from those of `weights` and `train`, or no
                checkpoint is intact.
        """
        while (step := self._last.latest_step()) is not None:
            try:
                items = self._restore_items(step, weights, train)
                break
            except _DamagedCheckpointError as error:
                self._fall_back(step, str(error))
        else:
            return None
        self._delete_best_from(step + 1)
        weights, train = (rename_modules(items[name], RENAMED_MODULES) for name in ("weights", "train"))
        records = complete_records(self._folder / LAST / str(step), items["records"])
        metrics = records.pop(_BEST_METRICS, None)
        if metrics is not None and step not in self._best.all_steps():
            self.save_best(step, weights, metrics)
            self._best.wait_until_finished()
        return RestoredState(weights, train, records, step)

    def _restore_items(self, step: int, weights: PyTree, train: PyTree) -> Mapping[str, Any]:
        """Restores the items of a checkpoint under the names that its modules have in the checkpoint.

        Raises:
            WorkdirError: the paths or shapes of the stored arrays differ from those of `weights` and `train`.
            _DamagedCheckpointError: the checkpoint cannot be restored, although the paths and shapes agree.
        """
        try:
            stored = self._last.item_metadata(step)
            stored = {name: stored[name].tree for name in ("weights", "train")}
            names = {
                current: former for former, current in RENAMED_MODULES.items() if former in stored["weights"]["params"]
            }
        except Exception as error:  # damaged metadata can raise any exception
            raise _DamagedCheckpointError(f"its metadata cannot be read: {_first_line(error)}") from error
        targets = {"weights": rename_modules(weights, names), "train": rename_modules(train, names)}
        if mismatch := _find_mismatch(stored, targets):
            workdir = self._folder.parent
            raise WorkdirError(
                f"the checkpoint of step {step} in {self._last.directory} does not match the parameters of this "
                "config: revert the change to the config, or train in a new workdir with "
                f"--config.init_from={workdir}. First mismatch: {mismatch}"
            )
        template = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        try:
            return self._last.restore(step, args=ocp.args.Composite(records=ocp.args.JsonRestore(), **template))
        except Exception as error:  # damaged files can raise any exception
            raise _DamagedCheckpointError(f"it cannot be restored: {_first_line(error)}") from error

    def _fall_back(self, step: int, damage: str) -> None:
        """Sets a checkpoint without checksums aside that could not be restored.

        Raises:
            WorkdirError: there is no other intact checkpoint, or there are several processes, which cannot all know
                that one of them could not restore it.
        """
        choice = choose_intact(self._folder / LAST, ITEMS[LAST], at_most=step - 1)
        if choice.step is None:
            raise no_intact_checkpoint(self._folder / LAST, {step: damage, **choice.damaged})
        if jax.process_count() > 1:
            raise WorkdirError(
                f"the checkpoint {self._folder / LAST / str(step)} is damaged ({damage}): resume from an earlier one "
                f"with --checkpoint={choice.step}"
            )
        set_damaged_aside(self._folder, {step: damage, **choice.damaged}, choice.step)
        self._last.reload()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, which may still be being written; None if there is none."""
        return self._last.latest_step()

    def is_saved(self, step: int) -> bool:
        """Returns whether a complete checkpoint of `step` exists. Thread-safe."""
        return step in ocp.utils.checkpoint_steps(self._last.directory)

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written in the background. Does not wait."""
        self._last.check_for_errors()
        self._best.check_for_errors()

    def wait(self) -> None:
        """Blocks until all pending checkpoints are written."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Waits for pending checkpoints, then stops the background threads."""
        self._last.close()
        self._best.close()


def find_saved_step(workdir: str | epath.Path) -> int | None:
    """Returns the step of the newest checkpoint, from which training can be resumed; None if there is none."""
    return max(ocp.utils.checkpoint_steps(absolute_path(workdir) / "checkpoints" / "last"), default=None)


class _DamagedCheckpointError(Exception):
    """A checkpoint cannot be restored, although it is of the model of this config."""


def read_weights(
    source: str | epath.Path, which: str = "best", sharding: jax.sharding.Sharding | None = None
) -> Weights:
    """Reads intact weights from the checkpoints of a run; for inference, `loading.load_model` is faster.

    Args:
        source: workdir of the run.
        which: "best" (by validation metric, or the last if no evaluation has run yet), "last", or a step. If a
            checkpoint is damaged, a warning names it, and the previous one is read.
        sharding: sharding of the arrays; NumPy arrays if None.

    Raises:
        MissingFileError: there is no checkpoint, or none of this step.
        WorkdirError: all checkpoints are damaged.
        ConfigError: `which` is none of these.
    """
    check_choice(which)
    folder = absolute_path(source) / "checkpoints"
    requested = int(which) if which not in CHECKPOINT_CHOICES else None
    damaged: dict[int, str] = {}
    for name in CHECKPOINT_CHOICES.get(which, (BEST, LAST)):
        for step in list_steps(folder / name):
            if requested not in (None, step):
                continue
            checkpoint = folder / name / str(step)
            try:
                if damage := find_damage(checkpoint, ("weights",)):
                    raise _DamagedCheckpointError(damage)
                return Weights(_read_item(checkpoint, sharding), step)
            except _DamagedCheckpointError as error:
                damaged[step] = str(error)
                log.warning("the checkpoint %s is damaged (%s): it is not used", checkpoint, error)
    if damaged:
        raise no_intact_checkpoint(folder, damaged)
    if requested is not None:
        raise MissingFileError(f"no checkpoint of step {requested} in {folder}: {_describe_steps(folder)}")
    raise MissingFileError(f"no checkpoint in {folder}: is {source} the --workdir of a run that has saved one?")


def find_step(workdir: str | epath.Path, step: int) -> bool:
    """Returns whether intact weights of a step are among the checkpoints."""
    folder = absolute_path(workdir) / "checkpoints"
    return any(
        step in list_steps(folder / kind) and not find_damage(folder / kind / str(step), ("weights",))
        for kind in (BEST, LAST)
    )


def find_best(workdir: str | epath.Path, at_most: int) -> tuple[int, dict[str, float]] | None:
    """Returns the step and the validation metrics of the newest intact best weights; None if there are none."""
    folder = absolute_path(workdir) / "checkpoints" / BEST
    step = choose_intact(folder, ITEMS[BEST], at_most).step
    return None if step is None else (step, json.loads((folder / str(step) / "records" / "metadata").read_bytes()))


def has_checkpoint(workdir: str | epath.Path) -> bool:
    """Returns whether `workdir` contains a checkpoint to resume from."""
    return bool(ocp.utils.checkpoint_steps(storage_path(workdir) / "checkpoints" / "last"))


def _read_item(folder: epath.Path, sharding: jax.sharding.Sharding | None) -> PyTree:
    """Restores the weights of a checkpoint.

    Raises:
        _DamagedCheckpointError: they cannot be restored.
    """

    def restore_target(saved: Any) -> Any:
        if sharding is None:
            return np.empty(saved.shape, saved.dtype)
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)

    handlers = _make_handlers()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
        try:
            template = jax.tree.map(restore_target, handlers["weights"].metadata(folder / "weights").tree)
            items = checkpointer.restore(folder, ocp.args.Composite(weights=ocp.args.StandardRestore(template)))
        except Exception as error:  # damaged files can raise any exception
            raise _DamagedCheckpointError(_first_line(error)) from error
        return rename_modules(items["weights"], RENAMED_MODULES)


def _find_mismatch(stored: PyTree, expected: PyTree) -> str:
    """Describes the first array whose path or shape differs between two trees; "" if there is none."""
    shapes, expected_shapes = _list_shapes(stored), _list_shapes(expected)
    for name in [*expected_shapes, *shapes]:
        here, there = (_describe_shape(table.get(name)) for table in (expected_shapes, shapes))
        if here != there:
            return f"{name} is {there} in the checkpoint, and {here} in the model"
    return ""


def _list_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _describe_shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def _describe_steps(folder: epath.Path) -> str:
    steps = sorted({step for name in (LAST, BEST) for step in list_steps(folder / name)})
    return f"available are {', '.join(map(str, steps))}" if steps else "there are no checkpoints"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]


def _make_manager(folder: epath.Path, before_commit: Callable[[], None]) -> ocp.CheckpointManager:
    """Creates a manager that calls `before_commit` in its background thread when all files of a step are written."""
    # The prefix distinguishes the barriers of checkpoints that are written at the same time.
    processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        cleanup_tmp_directories=True,
        multiprocessing_options=processes,
        async_options=ocp.AsyncOptions(post_finalization_callback=before_commit),
    )
    return ocp.CheckpointManager(folder, options=options, item_handlers=_make_handlers())


def _make_handlers() -> dict[str, ocp.CheckpointHandler]:
    """Creates the Orbax handlers of the items in a checkpoint."""
    return {
        "weights": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "records": ocp.JsonCheckpointHandler(),
    }
