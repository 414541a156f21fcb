"""A background thread that writes to files in order, so that training does not wait for a disk or a bucket."""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_MAX_PENDING = 1000  # writes; the caller waits if there are more


class WriteQueue:
    """Calls functions in a background thread, in order. If one raises an error, a later method call raises it.

    Args:
        name: name of the thread, which is started by the first write and joined at interpreter exit.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._pending: collections.deque[Future[None]] = collections.deque()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queues a call of `function`."""
        self._collect(_MAX_PENDING)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._pending.append(self._thread.submit(function, *arguments))

    def flush(self) -> None:
        """Waits for all queued calls."""
        self._collect(max_pending=0)

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Waits for all queued calls, then calls `last` in the thread and ends it. Does nothing without a write."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        if last is not None:
            self._pending.append(thread.submit(last))
        thread.shutdown()
        self.flush()

    def _collect(self, max_pending: int) -> None:
        """Raises the errors of completed calls, and waits until at most `max_pending` are pending."""
        while self._pending and (self._pending[0].done() or len(self._pending) > max_pending):
            self._pending.popleft().result()
