"""Reasons to end a run before its last step: a signal, or a loss that is NaN or infinite."""

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
    """Within it, SIGTERM (a preemption, the end of a scheduled job) and the first Ctrl-C no longer end the process.

    Yields:
        A function that is asked after every step, with the number of steps made, whether to save and stop. Several
        processes are told so after one and the same step, whichever of them got the signal.
    """
    if jax.process_count() > 1:
        # jax.distributed listens for SIGTERM itself: a handler of Python's would take its place.
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous[signal.SIGINT])  # a second Ctrl-C does not wait

    for number in previous:
        signal.signal(number, receive)
    try:
        yield lambda step: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class NonFiniteLossError(UserError, RuntimeError):
    """The loss or the parameters became NaN or infinite."""


class _Made(NamedTuple):
    step: int
    loss: jax.Array
    parameter_norm: jax.Array
    index: jax.Array


class FiniteCheck:
    """Ends a run whose numbers went wrong: looks at each step one step late, so that the device never waits for it.

    Args:
        split: what is trained on, to name the images.
    """

    def __init__(self, split: Split):
        self._split = split
        self._made: collections.deque[_Made] = collections.deque()

    def push(self, step: int, metrics: dict[str, jax.Array], index: jax.Array) -> None:
        """Takes what step `step` gave, and looks at the step before. Raises NonFiniteLossError."""
        self._made.append(_Made(step, metrics["loss"], metrics["parameter_norm"], index))
        while len(self._made) > 1:
            self._look(self._made.popleft())

    def flush(self) -> None:
        """Looks at all steps so far: before anything is kept of them. Raises NonFiniteLossError."""
        while self._made:
            self._look(self._made.popleft())

    def _look(self, made: _Made) -> None:
        loss, norm = float(made.loss), float(made.parameter_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        ids = [self._split.image_ids[row] for row in _local_rows(made.index)]
        raise NonFiniteLossError(
            f"step {made.step}: the loss is {loss} and the norm of the parameters after it {norm}. The last checkpoint "
            f"is from before; the same command goes on from it. Images of the step: {ids}. Try a lower "
            "config.optimizer.learning_rate, a longer config.optimizer.warmup_steps, a smaller "
            "config.optimizer.clip_norm, or config.dtype=float32."
        )


def _local_rows(index: jax.Array) -> list[int]:
    """The part of a batch-sharded array of row numbers that this process holds."""
    return [int(row) for shard in index.addressable_shards if shard.replica_id == 0 for row in shard.data]
