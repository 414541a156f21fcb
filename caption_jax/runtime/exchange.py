"""Messages between the processes of a run, through the key-value store of `jax.distributed`.

Unlike collectives, these need no devices and no common program, and have a timeout. They are therefore safe before it
is known that all processes are about to run the same program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from caption_jax.errors import ProcessesError

TIMEOUT_SECONDS = 1800  # one process may read its data from a slower disk than another

_counter = itertools.count()  # keys cannot be reused


def judge_together(
    topic: str, message: str, judge: Callable[[Sequence[str]], str], timeout_seconds: float = TIMEOUT_SECONDS
) -> str:
    """Sends a message of each process to process 0, and returns its verdict in all processes.

    All processes must make the same calls in the same order.

    Args:
        topic: what a process reports, for the error message.
        message: message of this process.
        judge: computes the verdict from the messages, ordered by process; called in process 0 only.
        timeout_seconds: how long to wait for each process.

    Raises:
        ProcessesError: another process did not send its message in time.
    """
    client, index, key = _get_client(), jax.process_index(), f"caption_jax/{next(_counter)}"
    client.key_value_set(f"{key}/{index}", message)
    if index:
        # Process 0 waits for the others one after another, so this process waits a little longer than that.
        return _receive(client, f"{key}/verdict", 0, topic, timeout_seconds + 60)
    messages = [message]
    messages += [
        _receive(client, f"{key}/{peer}", peer, topic, timeout_seconds) for peer in range(1, jax.process_count())
    ]
    verdict = judge(messages)
    client.key_value_set(f"{key}/verdict", verdict)
    return verdict


def report_failure(message: str, verdict: str) -> None:
    """Takes the place of `judge_together` in a process that cannot go on, and does not wait for the others.

    Args:
        message: message of this process.
        verdict: verdict for the other processes if this is process 0, which then computes no other one.
    """
    client, index, key = _get_client(), jax.process_index(), f"caption_jax/{next(_counter)}"
    client.key_value_set(f"{key}/{index}", message)
    if index == 0:
        client.key_value_set(f"{key}/verdict", verdict)


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
