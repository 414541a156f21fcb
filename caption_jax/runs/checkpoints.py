"""Reading and writing a model's weights and a run's state with Orbax.

Layout below the workdir:

    checkpoints/last/<step>/   weights (what inference uses), train (optimizer state and raw parameters), records (JSON)
    checkpoints/best/<step>/   weights and the validation metrics they reached; the highest step is the best

Nothing here knows the optimizer or the model, so that reading weights for inference stays light.
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
from caption_jax.files import absolute
from caption_jax.runs.weights import CHOICES, Weights

PyTree = Any


@dataclass(frozen=True)
class Restored:
    """What a run continues from: two trees of arrays, JSON records, and the step all of them belong to."""

    weights: PyTree
    train: PyTree
    records: dict[str, Any]
    step: int


class Checkpoints:
    """Writes the last and the best checkpoints of a run, in the background, and finds where to go on.

    A checkpoint becomes visible by one rename when all of its files are written, so a run that is killed at any moment
    finds whole checkpoints only. `save` has to follow each `save_best`, with the same step: then the weights that the
    records of the newest checkpoint call the best are among the two best that are kept, whenever the run is killed.
    """

    def __init__(self, workdir: str | epath.Path):
        folder = absolute(workdir) / "checkpoints"
        self._last = _manager(folder / "last", keep=2)
        self._best = _manager(folder / "best", keep=2)

    def save(self, step: int, weights: PyTree, train: PyTree, records: Mapping[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns when the arrays and records may be changed again."""
        if step == self._last.latest_step():
            return
        self._best.wait_until_finished()  # a checkpoint must not tell of best weights that are not there yet
        records = ocp.args.JsonSave(copy.deepcopy(dict(records)))  # written later, when the run has changed its own
        items = {"weights": ocp.args.StandardSave(weights), "train": ocp.args.StandardSave(train)}
        self._last.save(step, args=ocp.args.Composite(records=records, **items), force=True)

    def save_best(self, step: int, weights: PyTree, metrics: Mapping[str, float]) -> None:
        """Starts writing the weights that scored best so far, with their scores."""
        self._last.wait_until_finished()
        self._forget_best_from(step)
        items = {"weights": ocp.args.StandardSave(weights), "records": ocp.args.JsonSave(dict(metrics))}
        self._best.save(step, args=ocp.args.Composite(**items), force=True)

    def _forget_best_from(self, step: int) -> None:
        """Deletes best weights that were written before a crash, by steps that are now run again."""
        for later in [s for s in self._best.all_steps() if s >= step]:
            self._best.delete(later)

    def restore(self, weights: PyTree, train: PyTree) -> Restored | None:
        """Reads the newest checkpoint into the shapes, types and shardings of the two templates; None if there is none.

        Raises:
            ValueError: the checkpoint holds other parameters than the templates.
        """
        step = self._last.latest_step()
        if step is None:
            return None
        template = {"weights": ocp.args.StandardRestore(weights), "train": ocp.args.StandardRestore(train)}
        try:
            read = self._last.restore(step, args=ocp.args.Composite(records=ocp.args.JsonRestore(), **template))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkdirError(
                f"the checkpoint of step {step} in {self._last.directory} does not fit this config's parameters: "
                f"start in a new workdir with --config.init_from={self._last.directory.parent.parent}, or undo the "
                f"change of the config. The first difference: {str(error)[:1000]}"
            ) from error
        self._forget_best_from(step + 1)
        return Restored(read["weights"], read["train"], read["records"], step)

    def is_saved(self, step: int) -> bool:
        """Whether the state after `step` steps is safely written and still kept; any thread may ask."""
        return step in ocp.utils.checkpoint_steps(self._last.directory)

    def wait(self) -> None:
        """Returns when everything that `save` began is safely written."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the background threads."""
        self._last.close()
        self._best.close()


def read_weights(
    source: str | epath.Path, which: str = "best", sharding: jax.sharding.Sharding | None = None
) -> Weights:
    """Reads a model's weights from a run's checkpoints; for inference, `loading.load_model` is quicker.

    Args:
        source: a workdir.
        which: "best" (by validation CIDEr-D; the last one if nothing was evaluated yet) or "last".
        sharding: where the arrays go; None for NumPy arrays.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: `which` is neither of the two.
    """
    if which not in CHOICES:
        raise ConfigError(f"which checkpoint? 'best' or 'last', not {which!r}")
    folder = absolute(source) / "checkpoints"
    for name in CHOICES[which]:
        if steps := ocp.utils.checkpoint_steps(folder / name):
            return Weights(_read_item(folder / name / str(max(steps)), sharding), max(steps))
    raise MissingFileError(f"no checkpoint in {folder}: is {source} the --workdir of a run that has saved one?")


def has_checkpoint(workdir: str | epath.Path) -> bool:
    """Whether a run in `workdir` has saved a state to go on from."""
    return bool(ocp.utils.checkpoint_steps(epath.Path(workdir) / "checkpoints" / "last"))


def _read_item(folder: epath.Path, sharding: jax.sharding.Sharding | None) -> PyTree:
    def place(saved: Any) -> Any:
        if sharding is None:
            return np.empty(saved.shape, saved.dtype)
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as checkpointer:
        template = jax.tree.map(place, checkpointer.metadata(folder).item_metadata["weights"].tree)
        return checkpointer.restore(folder, ocp.args.Composite(weights=ocp.args.StandardRestore(template)))["weights"]


def _manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder, options=options, item_handlers=_handlers())


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """How each item of a checkpoint is written and read."""
    return {
        "weights": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "records": ocp.JsonCheckpointHandler(),
    }
