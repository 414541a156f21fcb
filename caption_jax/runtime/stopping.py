"""Ends a run before its last step: on a signal, or when the loss or the parameters become NaN or infinite."""

from __future__ import annotations

import collections
import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from caption_jax.errors import UserError
from input_pipeline.records import Split


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Treats SIGTERM (preemption or the end of a scheduled job) and the first Ctrl-C as a request to save and stop.

    Yields:
        A function that takes the number of completed steps and returns whether to save and stop. Call it after every
        step. If there are several processes, it returns True after the same step in all of them, even if only one
        received the signal.
    """
    if jax.process_count() > 1:
        # jax.distributed handles SIGTERM, and a Python handler would replace its handler.
        yield multihost_utils.reached_preemption_sync_point
        return
    received_signals = []
    previous_handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle_signal(number: int, _: object) -> None:
        received_signals.append(number)
        signal.signal(signal.SIGINT, previous_handlers[signal.SIGINT])  # a second Ctrl-C interrupts immediately

    for number in previous_handlers:
        signal.signal(number, handle_signal)
    try:
        yield lambda step: bool(received_signals)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


class NonFiniteLossError(UserError, RuntimeError):
    """The loss or the parameters became NaN or infinite."""


class _StepOutputs(NamedTuple):
    step: int
    loss: jax.Array
    parameter_norm: jax.Array
    index: jax.Array


class FiniteCheck:
    """Checks that the loss and the parameters are finite, one step late, so that the device never waits for the host.

    Args:
        split: the training split, whose image ids appear in the error message.
    """

    def __init__(self, split: Split):
        self._split = split
        self._pending: collections.deque[_StepOutputs] = collections.deque()

    def push(self, step: int, metrics: dict[str, jax.Array], index: jax.Array) -> None:
        """Adds the outputs of a step and checks the previous step. Raises NonFiniteLossError.

        Args:
            step: number of completed steps, including this one.
            metrics: metrics of the step, with scalars "loss" and "parameter_norm" (after the update).
            index: int array [batch], indices of the batch's images in the split.
        """
        self._pending.append(_StepOutputs(step, metrics["loss"], metrics["parameter_norm"], index))
        while len(self._pending) > 1:
            self._check(self._pending.popleft())

    def flush(self) -> None:
        """Checks all pending steps. Call before saving or evaluating the state. Raises NonFiniteLossError."""
        while self._pending:
            self._check(self._pending.popleft())

    def _check(self, outputs: _StepOutputs) -> None:
        loss, norm = float(outputs.loss), float(outputs.parameter_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        ids = [self._split.image_ids[index] for index in _local_indices(outputs.index)]
        raise NonFiniteLossError(
            f"step {outputs.step}: loss is {loss}, parameter norm after the update is {norm}. The last checkpoint "
            f"precedes this step; run the same command again to resume from it. Images of the step: {ids}. Try a lower "
            "config.optimizer.learning_rate, a longer config.optimizer.warmup_steps, a smaller "
            "config.optimizer.clip_norm, or config.dtype=float32."
        )


def _local_indices(index: jax.Array) -> list[int]:
    """Returns the elements of a batch-sharded array that this process can address, without replicas."""
    return [int(element) for shard in index.addressable_shards if shard.replica_id == 0 for element in shard.data]
