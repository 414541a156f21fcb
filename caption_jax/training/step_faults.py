"""Faults of training steps: losses, gradients and parameters that are not finite, and spikes of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.specs import TrainSpec
from caption_jax.training.loss_spikes import LossSpikes
from caption_jax.training.skipped_steps import SKIPPED
from input_pipeline.records import Split

ReadIndices = Callable[[], Sequence[int]]

_MAX_NAMED = 32  # images of a step
_MAX_SPIKES = 3  # reported per log point
_REMEDY = (
    "Try a lower config.optimizer.learning_rate, a longer config.optimizer.warmup_steps, a smaller "
    "config.optimizer.clip_norm, or config.dtype=float32"
)


class StepFaults:
    """Checks the metrics of each step, in order, once the host has read them.

    Args:
        spec: `config.train`.
        split: the training split, whose image ids appear in messages.
        last_saved: returns the step of the last checkpoint, or None.
    """

    def __init__(self, spec: TrainSpec, split: Split, last_saved: Callable[[], int | None] = lambda: None):
        self._spec, self._split, self._last_saved = spec, split, last_saved
        self._spikes = LossSpikes()
        self._reported_spikes = 0  # since the last log point
        self._skipped = 0
        self._skipped_in_a_row = 0

    def dump(self) -> dict[str, Any]:
        """Returns the state to store in a checkpoint."""
        return {
            "losses": self._spikes.dump(),
            "skipped": self._skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `dump` returned; {} from a checkpoint of an older release."""
        self._spikes = LossSpikes(state.get("losses", ()))
        self._skipped, self._skipped_in_a_row = state.get("skipped", 0), state.get("skipped_in_a_row", 0)

    def check(self, step: int, values: Mapping[str, float], read_indices: ReadIndices) -> None:
        """Checks a step.

        Args:
            step: number of completed steps, including this one.
            values: the metrics in `CHECKED`, and `SKIPPED` if steps can be skipped.
            read_indices: returns the indices of the images of the step in the split, which are on the devices.

        Raises:
            NonFiniteLossError: a metric is not finite, and the step was not skipped, or too many were in a row.
        """
        if self._spec.non_finite == "skip":
            self._count(step, values, read_indices)
        elif not all(math.isfinite(value) for value in values.values()):
            raise NonFiniteLossError(
                f"step {step}: {_describe(values)}. {self._describe_checkpoint()} Images of the step: "
                f'{self._name_images(read_indices())}. {_REMEDY}; config.train.non_finite="skip" skips such steps.'
            )
        if description := self._spikes.add(values["loss"]):
            self._report_spike(step, description, read_indices)

    def summarise(self, values: Mapping[str, float]) -> dict[str, float]:
        """Called at each log point, before the check of its step.

        Args:
            values: the metrics of the step.

        Returns:
            `SKIPPED` as the number of steps skipped so far, including this one; {} if steps cannot be skipped.
        """
        if self._reported_spikes > _MAX_SPIKES:
            logging.warning("%d more loss spikes since the last log point", self._reported_spikes - _MAX_SPIKES)
        self._reported_spikes = 0
        return {SKIPPED: self._skipped + values[SKIPPED]} if SKIPPED in values else {}

    def _count(self, step: int, values: Mapping[str, float], read_indices: ReadIndices) -> None:
        if not values[SKIPPED]:
            self._skipped_in_a_row = 0
            return
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > self._spec.max_skipped_steps:
            raise NonFiniteLossError(
                f"step {step}: {_describe(values)}, as in the {self._spec.max_skipped_steps} steps before it, which "
                f"were skipped (config.train.max_skipped_steps). {self._describe_checkpoint()} Images of the step: "
                f"{self._name_images(read_indices())}. {_REMEDY}."
            )
        logging.warning(
            "step %d skipped (%d so far, %d in a row): %s. Images of the step: %s",
            *(step, self._skipped, self._skipped_in_a_row, _describe(values), self._name_images(read_indices())),
        )

    def _report_spike(self, step: int, description: str, read_indices: ReadIndices) -> None:
        self._reported_spikes += 1
        if self._reported_spikes <= _MAX_SPIKES:
            images = self._name_images(read_indices())
            logging.warning("loss spike at step %d: %s. Images of the step: %s", step, description, images)

    def _describe_checkpoint(self) -> str:
        step = self._last_saved()
        if step is None:
            return "There is no checkpoint yet: the same command starts from step 0."
        return f"The last checkpoint, of step {step}, precedes it; run the same command again to resume from there."

    def _name_images(self, indices: Sequence[int]) -> str:
        ids = [self._split[index].image_id for index in indices if index >= 0]
        more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
        return f"{ids[:_MAX_NAMED]}{more}"


def _describe(values: Mapping[str, float]) -> str:
    return (
        f"loss is {values['loss']}, gradient norm is {values['gradient_norm']}, parameter norm after the update is "
        f"{values['parameter_norm']}"
    )
