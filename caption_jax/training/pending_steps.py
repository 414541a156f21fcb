"""Outputs of training steps that are still running, or that the host has not read yet.

JAX dispatches a step before the previous one is finished. Reading an output of the newest step would make the devices
idle until the host has dispatched another one. The host therefore reads outputs one step late, and only at log points.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from caption_jax.runtime.stopping import NonFiniteLossError
from input_pipeline.records import Split

_CHECKED = ("loss", "parameter_norm")  # metrics that must be finite


class _StepOutputs(NamedTuple):
    """Outputs of a step.

    Attributes:
        step: number of completed steps, including this one.
        metrics: scalars on the devices: those in `_CHECKED`, or everything that is logged.
        index: int array [batch], indices of the batch's images in the split.
        is_log_point: whether to log `metrics`.
    """

    step: int
    metrics: Mapping[str, Any]
    index: jax.Array
    is_log_point: bool


class PendingSteps:
    """Waits for steps, logs the metrics of log points, and checks that all losses and parameters are finite.

    Between log points, nothing is transferred from the devices to the host. Leaving its `with` block calls `flush`.

    Args:
        split: the training split, whose image ids appear in error messages.
        log: called with the step and the metrics of each log point, in order, once the step is finished.
    """

    def __init__(self, split: Split, log: Callable[[int, dict[str, float]], None]):
        self._split, self._log = split, log
        self._running: collections.deque[_StepOutputs] = collections.deque()
        self._unread: list[_StepOutputs] = []  # finished steps since the last log point

    def __enter__(self) -> PendingSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, NonFiniteLossError)):
            self.flush()  # after an error in the input pipeline, earlier steps are still logged

    def push(
        self, step: int, metrics: Mapping[str, jax.Array], index: jax.Array, logged: Mapping[str, Any] | None = None
    ) -> None:
        """Adds the outputs of a step that has just been dispatched, and waits until the previous step is finished.

        Args:
            step: number of completed steps, including this one.
            metrics: metrics of the step, with scalars "loss" and "parameter_norm" (after the update).
            index: int array [batch], indices of the batch's images in the split.
            logged: other values to log, on the devices or the host; None if this step is not a log point.

        Raises:
            NonFiniteLossError: the previous step was a log point, and a loss or parameter is not finite.
        """
        values = {name: metrics[name] for name in _CHECKED} if logged is None else {**metrics, **logged}
        self._running.append(_StepOutputs(step, values, index, logged is not None))
        while len(self._running) > 1:
            self._finish(self._running.popleft())

    def flush(self) -> None:
        """Waits for all steps, and reads their outputs. Call it before saving or evaluating the state.

        Raises:
            NonFiniteLossError: a loss or parameter is not finite.
        """
        while self._running:
            self._finish(self._running.popleft())
        self._read()

    def _finish(self, outputs: _StepOutputs) -> None:
        jax.block_until_ready(outputs.metrics["loss"])  # limits the steps in flight; transfers nothing
        self._unread.append(outputs)
        if outputs.is_log_point:
            self._read()

    def _read(self) -> None:
        steps, self._unread = self._unread, []
        fetched = jax.device_get([outputs.metrics for outputs in steps])
        for outputs, metrics in zip(steps, fetched, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            if outputs.is_log_point:
                self._log(outputs.step, values)
            if not all(math.isfinite(values[name]) for name in _CHECKED):
                raise self._describe_error(outputs, values)

    def _describe_error(self, outputs: _StepOutputs, values: Mapping[str, float]) -> NonFiniteLossError:
        ids = [self._split.image_ids[index] for index in _local_indices(outputs.index)]
        return NonFiniteLossError(
            f"step {outputs.step}: loss is {values['loss']}, parameter norm after the update is "
            f"{values['parameter_norm']}. The last checkpoint precedes this step; run the same command again to resume "
            f"from it. Images of the step: {ids}. Try a lower config.optimizer.learning_rate, a longer "
            "config.optimizer.warmup_steps, a smaller config.optimizer.clip_norm, or config.dtype=float32."
        )


def _local_indices(index: jax.Array) -> list[int]:
    """Returns the elements of a batch-sharded array that this process can address, without replicas."""
    return [int(element) for shard in index.addressable_shards if shard.replica_id == 0 for element in shard.data]
