"""Ends a run before its last step: on a signal, or when the loss or the parameters become NaN or infinite."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from caption_jax.errors import UserError


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
