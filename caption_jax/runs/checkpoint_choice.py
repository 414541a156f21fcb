"""Choice of the checkpoint from which a run resumes: the newest intact one, or the one that the user selects.

Newer checkpoints, which are damaged or were not selected, are renamed to `checkpoints/set_aside/<kind>-<step>`. They
are never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from caption_jax.errors import UserError, WorkdirError, user_message
from caption_jax.runs.artifact import relative_paths
from caption_jax.runs.checkpoint_integrity import find_damage
from caption_jax.runs.s3_checkpoints import extend_orbax_to_s3
from caption_jax.runtime.exchange import judge_together
from input_pipeline.errors import ConfigError
from input_pipeline.files import is_on_bucket

LAST, BEST = "last", "best"
ITEMS = {LAST: ("weights", "train", "records"), BEST: ("weights", "records")}
SET_ASIDE = "set_aside"
_MAX_LISTED = 5

Result = TypeVar("Result")

extend_orbax_to_s3()  # this module is imported before any checkpoint is accessed


@dataclass(frozen=True)
class CheckpointChoice:
    """A checkpoint to use.

    Attributes:
        step: its step; None if no checkpoint is intact.
        damaged: newer checkpoints that cannot be used: step -> damage.
    """

    step: int | None
    damaged: dict[int, str] = field(default_factory=dict)


def list_steps(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, newest first, including damaged ones."""
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.exists() else []


def choose_intact(folder: epath.Path, items: tuple[str, ...], at_most: int | None = None) -> CheckpointChoice:
    """Chooses the newest checkpoint whose items are intact.

    Args:
        folder: folder with a subfolder per step.
        items: items that will be read.
        at_most: newest step to consider.
    """
    damaged: dict[int, str] = {}
    for step in list_steps(folder):
        if at_most is not None and step > at_most:
            continue
        damage = find_damage(folder / str(step), items)
        if not damage:
            return CheckpointChoice(step, damaged)
        if (folder / str(step)).exists():  # otherwise, the run has since deleted it
            damaged[step] = damage
    return CheckpointChoice(None, damaged)


def prepare_to_resume(folder: epath.Path, requested: int | None = None) -> None:
    """Makes the checkpoint to resume from the newest one. Process 0 renames the newer ones; the others wait for it.

    Damaged best weights up to that step are set aside as well.

    Args:
        folder: `checkpoints` in the workdir.
        requested: the step that the user selected; by default, that of the newest intact checkpoint.

    Raises:
        WorkdirError: there are checkpoints, but none is intact, or the requested one is damaged.
        ConfigError: there is no checkpoint of the requested step.
    """
    in_process_0(lambda: _prepare(folder, requested))


def set_damaged_aside(folder: epath.Path, damaged: dict[int, str], step: int) -> None:
    """Sets the damaged checkpoints aside, and logs what was damaged and how many steps are repeated from `step`."""
    for newer, damage in sorted(damaged.items()):
        target = _set_aside(folder / LAST / str(newer))
        logging.warning(
            "the checkpoint of step %d is damaged (%s): moved to %s; resuming from the intact checkpoint of step %d, "
            "so up to %d steps are repeated",
            *(newer, damage, target, step, newer - step),
        )


def in_process_0(function: Callable[[], Result]) -> Result:
    """Calls a function whose result is JSON in process 0 only, and returns its result in all processes.

    Raises:
        WorkdirError: the function raised a `UserError`; the message is the same in all processes.
    """
    if jax.process_count() == 1:
        return function()

    def judge(_: Any) -> str:
        try:
            return json.dumps({"result": function()})
        except (UserError, OSError) as error:
            return json.dumps({"error": user_message(error) or str(error)})

    verdict = json.loads(judge_together("that it is ready to read the checkpoints", "", judge))
    if "error" in verdict:
        raise WorkdirError(verdict["error"])
    return verdict["result"]


def describe_damage(damaged: dict[int, str]) -> str:
    """Describes damaged checkpoints: "step 30 (train/_METADATA is missing); step 20 (...)"."""
    listed = [f"step {step} ({damage})" for step, damage in list(damaged.items())[:_MAX_LISTED]]
    return "; ".join(listed) + (f"; and {len(damaged) - _MAX_LISTED} more" if len(damaged) > _MAX_LISTED else "")


def no_intact_checkpoint(folder: epath.Path, damaged: dict[int, str]) -> WorkdirError:
    """Returns the error to raise if all checkpoints are damaged."""
    return WorkdirError(
        f"all checkpoints in {folder} are damaged: {describe_damage(damaged)}: restore one of them from a copy, or "
        "start again in another workdir"
    )


def _prepare(folder: epath.Path, requested: int | None) -> None:
    last, steps = folder / LAST, list_steps(folder / LAST)
    if requested is not None:
        _check_requested(last, steps, requested)
        for newer in [step for step in steps if step > requested]:
            target = _set_aside(last / str(newer))
            logging.warning("resuming from step %d: moved the checkpoint of step %d to %s", requested, newer, target)
    choice = choose_intact(last, ITEMS[LAST])
    if choice.step is None:
        if choice.damaged:
            raise no_intact_checkpoint(last, choice.damaged)
        return
    set_damaged_aside(folder, choice.damaged, choice.step)
    for step in [step for step in list_steps(folder / BEST) if step <= choice.step]:
        if damage := find_damage(folder / BEST / str(step), ITEMS[BEST]):
            target = _set_aside(folder / BEST / str(step))
            logging.warning("the best weights of step %d are damaged (%s): moved to %s", step, damage, target)


def _check_requested(last: epath.Path, steps: list[int], requested: int) -> None:
    if requested not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"--checkpoint={requested}: {last} has no such step; available are {available}")
    if damage := find_damage(last / str(requested), ITEMS[LAST]):
        raise WorkdirError(f"--checkpoint={requested}: {last / str(requested)} is damaged ({damage}): select another")


def _set_aside(checkpoint: epath.Path) -> epath.Path:
    """Renames the folder of a checkpoint, and returns its new path."""
    parent = checkpoint.parent.parent / SET_ASIDE
    parent.mkdir(parents=True, exist_ok=True)
    name = f"{checkpoint.parent.name}-{checkpoint.name}"
    target, number = parent / name, 1
    while target.exists():
        number += 1
        target = parent / f"{name}-{number}"
    _rename(checkpoint, target)
    return target


def _rename(source: epath.Path, target: epath.Path) -> None:
    if not is_on_bucket(source):
        source.rename(target)
        return
    for name in list(relative_paths(source)):  # buckets cannot rename folders
        (source / name).copy(target / name)
    source.rmtree()
