"""Ends a run before its last step: on a signal, or when the loss or the parameters become NaN or infinite."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from caption_jax.errors import UserError
from caption_jax.runtime.signals import SignalHandling, handled_signals

StopRequested = Callable[[int], bool]  # takes the number of completed steps


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequested]:
    """Treats SIGTERM (preemption or the end of a scheduled job), SIGHUP and Ctrl-C as requests to save and stop.

    Yields:
        A function that takes the number of completed steps and returns whether to save and stop. Call it after every
        step and every batch of an evaluation. Until its first call, there is nothing to save, and a signal raises
        `SignalReceived`. If there are several processes, all of them must make the same calls. It then returns True in
        the same call in all of them, even if only one received the signal.

    Raises:
        SignalReceived: a signal was received, but the function has not been called since.
    """
    with handled_signals() as signals:
        stop_requested = _StopRequested(signals)
        try:
            yield stop_requested
        finally:
            received = signals.stop_deferring()
        if received is not None and not stop_requested.result:
            signals.raise_received()


class _StopRequested:
    def __init__(self, signals: SignalHandling):
        self.result = False
        self._signals = signals
        self._calls = itertools.count(1)

    def __call__(self, step: int) -> bool:
        if self.result:
            return True
        if jax.process_count() == 1:
            self._signals.defer()
            self.result = self._signals.received is not None
        else:
            # jax.distributed handles SIGTERM as the notice of a preemption.
            self._signals.defer(forward_to=signal.SIGTERM)
            self.result = multihost_utils.reached_preemption_sync_point(next(self._calls))
            if self.result:  # all processes have agreed, so a later SIGTERM is handled here, and a further one ends it
                self._signals.defer()
                self._signals.reinstall()
        return self.result


class EvaluationStoppedError(Exception):
    """An evaluation was abandoned because the run is to stop. It is not reported to the user."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss, a gradient or a parameter became NaN or infinite."""
