"""Outputs of training steps that are still running, or that the host has not read yet.

JAX dispatches a step before the previous one is finished. Reading an output of the newest step would make the devices
idle until the host has dispatched another one. The host therefore reads outputs one step late, and only at log points.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.training.skipped_steps import CHECKED, SKIPPED
from caption_jax.training.step_faults import StepFaults

_READ = (*CHECKED, SKIPPED)  # metrics that are read for every step, if they exist


class _StepOutputs(NamedTuple):
    """Outputs of a step.

    Attributes:
        step: number of completed steps, including this one.
        metrics: scalars on the devices: those in `_READ`, or everything that is logged.
        index: int array [batch], indices of the batch's images in the split.
        is_log_point: whether to log `metrics`.
    """

    step: int
    metrics: Mapping[str, Any]
    index: jax.Array
    is_log_point: bool


class PendingSteps:
    """Waits for steps, logs the metrics of log points, and checks the losses and gradients of all steps.

    Between log points, nothing is transferred from the devices to the host. Leaving its `with` block calls `flush`.

    Args:
        faults: checks each step.
        log: called with the step and the metrics of each log point, in order, once the step is finished.
    """

    def __init__(self, faults: StepFaults, log: Callable[[int, dict[str, float]], None]):
        self._faults, self._log = faults, log
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
            metrics: metrics of the step, which include those in `CHECKED`.
            index: int array [batch], indices of the batch's images in the split.
            logged: other values to log, on the devices or the host; None if this step is not a log point.

        Raises:
            NonFiniteLossError: the previous step was a log point, and a step is not finite (`StepFaults`).
        """
        read = {name: metrics[name] for name in _READ if name in metrics}
        values = read if logged is None else {**metrics, **logged}
        self._running.append(_StepOutputs(step, values, index, logged is not None))
        while len(self._running) > 1:
            self._finish(self._running.popleft())

    def flush(self) -> None:
        """Waits for all steps, and reads their outputs. Call it before saving or evaluating the state.

        Raises:
            NonFiniteLossError: a step is not finite (`StepFaults`).
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
                self._log(outputs.step, dict(values))
            checked = {name: values[name] for name in _READ if name in values}
            self._faults.check(outputs.step, checked, functools.partial(_local_indices, outputs.index))


def _local_indices(index: jax.Array) -> list[int]:
    """Returns the elements of a batch-sharded array that this process can address, without replicas."""
    return [int(element) for shard in index.addressable_shards if shard.replica_id == 0 for element in shard.data]
