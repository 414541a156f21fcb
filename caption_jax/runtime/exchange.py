"""Messages between the processes of a run, through the key-value store of `jax.distributed`.

Unlike collectives, these need no devices and no common program, and have a timeout. They are therefore safe before it
is known that all processes are about to run the same program.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from caption_jax.errors import ProcessesError
from caption_jax.runtime.liveness import current_watch

TIMEOUT_SECONDS = 1800  # one process may read its data from a slower disk than another
NO_TIMEOUT_SECONDS = 7 * 86400  # while `liveness` watches the processes

_counter = itertools.count()  # keys cannot be reused
_has_failed = threading.Event()  # set once this process has reported a failure


def judge_together(
    topic: str, message: str, judge: Callable[[Sequence[str]], str], timeout_seconds: float = TIMEOUT_SECONDS
) -> str:
    """Sends a message of each process to process 0, and returns its verdict in all processes.

    All processes must make the same calls in the same order, or call `report_failure`.

    Args:
        topic: what a process reports, for the error message.
        message: message of this process.
        judge: computes the verdict from the messages, ordered by process; called in process 0 only.
        timeout_seconds: how long to wait for each process.

    Raises:
        ProcessesError: another process failed, or did not send its message in time. The message about a failure is the
            same in all processes.
    """
    client, index, key = _get_client(), jax.process_index(), f"caption_jax/{next(_counter)}"
    client.key_value_set(f"{key}/{index}", json.dumps({"message": message}))
    if index:
        # Process 0 waits for the others one after another, so this process waits a little longer than that.
        result = json.loads(_receive(client, f"{key}/verdict", 0, topic, timeout_seconds + 60))
    else:
        peers = range(1, jax.process_count())
        replies = [json.loads(_receive(client, f"{key}/{peer}", peer, topic, timeout_seconds)) for peer in peers]
        if failures := [reply["failure"] for reply in replies if "failure" in reply]:
            result = {"failure": failures[0] + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else "")}
        else:
            result = {"message": judge([message, *(reply["message"] for reply in replies)])}
        client.key_value_set(f"{key}/verdict", json.dumps(result))
    if "failure" in result:
        raise ProcessesError(result["failure"])
    return result["message"]


def report_failure(reason: str, *, may_be_consequence: bool = False) -> None:
    """Ends the other processes with an error.

    Processes that were connected by `distributed.join_processes` end at once. Others end in their current or next call
    of `judge_together`. Does nothing if this process has already reported a failure, or if there are no other
    processes.

    Args:
        reason: why this process cannot go on.
        may_be_consequence: whether the reason may be that another process has ended, which is then reported instead.
    """
    if not jax.distributed.is_initialized() or _has_failed.is_set():
        return
    _has_failed.set()
    if (watch := current_watch()) is not None:
        watch.report_failure(reason, may_be_consequence=may_be_consequence)
        return
    client, index, key = _get_client(), jax.process_index(), f"caption_jax/{next(_counter)}"
    failure = json.dumps({"failure": f"process {index} ({socket.gethostname()}) failed: {reason}"})
    client.key_value_set(f"{key}/{index}", failure)
    if index == 0:
        client.key_value_set(f"{key}/verdict", failure)


def send_message(key: str, message: str) -> None:
    """Sends a message to the process that calls `receive_message` for this key, which cannot be used again."""
    _get_client().key_value_set(f"caption_jax/{key}", message)


def receive_message(key: str, sender: int) -> Any:
    """Waits for the message of the process `sender` with this key; returns its JSON contents."""
    client, key = _get_client(), f"caption_jax/{key}"
    message = _receive(client, key, sender, "its part of the work", NO_TIMEOUT_SECONDS)
    client.key_value_delete(key)
    return json.loads(message)


def wait_for_all(event: str) -> None:
    """Returns when all processes have called this function for an event, whose name must not be used again."""
    _get_client().wait_at_barrier(f"caption_jax/{event}", NO_TIMEOUT_SECONDS * 1000)


def _get_client() -> Any:
    from jax._src import distributed  # there is no public access to the store; Orbax also uses this

    if distributed.global_state.client is None:
        raise ProcessesError(
            f"{jax.process_count()} processes share the devices, but they are not connected: use --distributed=on, or "
            "call jax.distributed.initialize() first"
        )
    return distributed.global_state.client


def _receive(client: Any, key: str, sender: int, topic: str, timeout_seconds: float) -> str:
    try:
        return client.blocking_key_value_get(key, int(timeout_seconds * 1000))
    except RuntimeError as error:
        raise ProcessesError(
            f"process {sender} of {jax.process_count()} did not report {topic} within {timeout_seconds:.0f} s "
            f"({' '.join(str(error).split())[:200]}): see its log, and start the same command on all hosts again"
        ) from error
