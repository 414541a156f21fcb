"""Work that process 0 divides among the processes of a run, with the results of a single process.

Process 0 divides its items in whole batches, so that every batch has the contents that it has in a single process. The
other processes receive descriptions of their items, and send their results back.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from caption_jax.runtime.exchange import NO_TIMEOUT_SECONDS, judge_together, receive_message, send_message

Json = Any
Work = Callable[[int, Json], Json]  # takes the number of an item and the item

_AHEAD = 4  # items per process that are sent before their results are needed

_counter = itertools.count()  # all processes divide the same work in the same order


def divide(items: Sequence[Json], work: Work) -> Iterator[Json]:
    """Calls `work(number, item)` for each item in one of the processes. Called by process 0; the others `assist`.

    Args:
        items: descriptions of the items, JSON-serialisable.
        work: a function with a JSON-serialisable result.

    Yields:
        The results of all items in order, as soon as they are available.
    """
    count, topic = jax.process_count(), f"work/{next(_counter)}"
    sent = 0
    for number, item in enumerate(items):
        ahead = min(number + _AHEAD * count, len(items))
        for later in range(sent, ahead):
            if later % count:
                send_message(f"{topic}/{later}/item", json.dumps({"item": items[later]}))
        sent = max(sent, ahead)
        worker = number % count
        yield work(number, item) if worker == 0 else receive_message(f"{topic}/{number}/result", worker)["result"]
    for number in range(len(items), len(items) + count):
        if number % count:
            send_message(f"{topic}/{number}/item", json.dumps({}))


def assist(work: Work) -> None:
    """Works on the items that process 0 divides, until there are no more."""
    count, topic = jax.process_count(), f"work/{next(_counter)}"
    for number in itertools.count(jax.process_index(), count):
        message = receive_message(f"{topic}/{number}/item", 0)
        if "item" not in message:
            return
        send_message(f"{topic}/{number}/result", json.dumps({"result": work(number, message["item"])}))


def is_assistant() -> bool:
    """Returns whether this process assists process 0: it prints and writes nothing."""
    return jax.process_index() > 0


def share_status(status: int = 0) -> int:
    """Returns the exit status of process 0 in all processes, once all of them have called this function."""
    if jax.process_count() == 1:
        return status
    return int(judge_together("its exit status", str(status), lambda statuses: statuses[0], NO_TIMEOUT_SECONDS))
