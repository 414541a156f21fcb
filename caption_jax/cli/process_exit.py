"""The end of a command that runs in several processes: none of them waits for one that has failed."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator

from caption_jax.cli.exit_status import FAILURE
from caption_jax.errors import ProcessesError, describe_error, may_be_consequence
from caption_jax.runtime.liveness import PeerWatch, current_watch, flush_output
from caption_jax.runtime.signals import handled_signals


def has_peers() -> bool:
    """Returns whether this process belongs to a run of several processes."""
    return current_watch() is not None


def is_main_process() -> bool:
    """Returns whether this is process 0 of its run, or the only process."""
    watch = current_watch()
    return watch is None or watch.index == 0


@contextlib.contextmanager
def joined_end() -> Iterator[None]:
    """Leaves the other processes together with them at the end of the block, or reports its error to them."""
    try:
        yield
    except BaseException as error:
        if (watch := current_watch()) is not None:
            _report(watch, error)
        raise
    if current_watch() is not None:
        from caption_jax.runtime.distributed import leave_processes  # imports JAX

        leave_processes()


def call_and_exit(call: Callable[[], int]) -> int:
    """Calls a function that returns an exit status; exits at once if it fails while there are other processes.

    The usual exit would wait for all processes in JAX.
    """
    try:
        status = call()
    except BaseException as error:
        _exit_alone(error)
        raise
    watch = current_watch()
    if watch is not None and not watch.is_complete:
        flush_output()
        os._exit(status)
    return status


def _report(watch: PeerWatch, error: BaseException) -> None:
    """Reports an error to the other processes."""
    if isinstance(error, KeyboardInterrupt):
        watch.report_interruption(str(error) or "Ctrl-C")
    elif isinstance(error, ProcessesError):  # all processes raise it
        watch.report_shared_failure(describe_error(error))
    else:
        watch.report_failure(describe_error(error), may_be_consequence=may_be_consequence(error))


def _exit_alone(error: BaseException) -> None:
    """Prints an error and exits, if there are other processes. Interruptions are handled by the caller."""
    with handled_signals() as signals:
        is_interrupted = signals.raised or isinstance(error, KeyboardInterrupt | SystemExit)
    if current_watch() is None or is_interrupted:
        return
    traceback.print_exception(error)
    flush_output()
    os._exit(FAILURE)
