"""Batches of requests: an image that waits joins the next batch of its program.

One batch runs at a time. Images that arrive meanwhile wait, and form the next batches. If nothing runs, an image waits
up to a latency bound for others, unless it fills a batch. Programs take turns: the next batch is that of the program
whose first image has waited longest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from caption_jax.serving.refusals import BatchError

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchObserver(Protocol):
    """Is told of each batch, for metrics."""

    def batch_done(self, images: int, size: int, seconds: float) -> None:
        """Called after each batch, with its number of images, its padded size and its time."""


class _Waiting(Generic[Item]):
    """An item in the queue, the time of its arrival, and the future of its result."""

    def __init__(self, item: Item):
        self.item = item
        self.arrival = time.monotonic()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Batcher(Generic[Key, Item, Result]):
    """Runs a function on batches of the items that callers submit. Belongs to one event loop.

    Args:
        run: function (key, items, size) that returns one result per item. It is called in a thread of its own, one call
            at a time; `size` is the size to which it must pad the batch.
        sizes: the sizes of batches. The largest is the maximum number of items.
        max_wait: maximum time that an item waits for others while nothing runs, in seconds.
        observer: is told of each batch.
    """

    def __init__(
        self,
        run: Callable[[Key, list[Item], int], Sequence[Result]],
        sizes: Sequence[int],
        max_wait: float,
        observer: BatchObserver | None = None,
    ):
        self._run, self._sizes, self._max_wait, self._observer = run, sorted(set(sizes)), max_wait, observer
        self._queues: dict[Key, deque[_Waiting[Item]]] = {}
        self._changed = asyncio.Event()
        self._is_stopping = False
        self._seconds = 0.0  # of the last batch
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._worker = asyncio.get_running_loop().create_task(self._work())

    def __len__(self) -> int:
        """Number of items that wait for a batch."""
        return sum(map(len, self._queues.values()))

    def estimate_seconds(self, items: int) -> int:
        """Returns the time until this many items are done, in whole seconds, of which there is at least one."""
        return max(1, math.ceil(self._seconds * math.ceil(items / self._sizes[-1])))

    async def run_alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls another function in the thread of the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *arguments)

    async def submit(self, key: Key, item: Item) -> Result:
        """Waits for the result of an item. If the caller is cancelled, the item leaves the queue.

        Raises:
            RuntimeError: the batcher has stopped.
            BatchError: `run` failed on the batch of the item.
        """
        if self._is_stopping:
            raise RuntimeError("the batcher has stopped")
        waiting = _Waiting(item)
        queue = self._queues.setdefault(key, deque())
        queue.append(waiting)
        self._changed.set()
        try:
            return await waiting.future
        finally:
            with contextlib.suppress(ValueError):  # it is not in the queue any more, unless it was cancelled
                queue.remove(waiting)

    def stop_waiting(self) -> None:
        """From now on, runs batches at once, because few items will arrive."""
        self._max_wait = 0.0
        self._changed.set()

    async def stop(self) -> None:
        """Runs the batches of all items that wait, and ends the thread."""
        self._is_stopping = True
        self.stop_waiting()
        await self._worker
        self._device.shutdown(wait=False)

    async def _work(self) -> None:
        while True:
            key = self._choose_key()
            if key is not None:
                await self._run_batch(self._take(key))
            elif self._is_stopping:
                return
            else:
                await self._wait_for_change()

    def _choose_key(self) -> Key | None:
        """Returns the key of the next batch, or None if no batch is full or has waited long enough."""
        latest = time.monotonic() - self._max_wait
        ready = [
            key
            for key, queue in self._queues.items()
            if queue and (len(queue) >= self._sizes[-1] or queue[0].arrival <= latest)
        ]
        return min(ready, key=lambda key: self._queues[key][0].arrival, default=None)

    def _take(self, key: Key) -> tuple[Key, list[_Waiting[Item]]]:
        queue = self._queues[key]
        return key, [queue.popleft() for _ in range(min(len(queue), self._sizes[-1]))]

    async def _wait_for_change(self) -> None:
        """Waits until an item arrives, the batcher stops, or an item has waited for the maximum time."""
        self._changed.clear()
        ends = [queue[0].arrival + self._max_wait for queue in self._queues.values() if queue]
        delay = max(min(ends) - time.monotonic(), 0) if ends else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), delay)

    async def _run_batch(self, batch: tuple[Key, list[_Waiting[Item]]]) -> None:
        key, entries = batch
        items = [entry.item for entry in entries]
        size = next(size for size in self._sizes if size >= len(items))
        start = time.monotonic()
        try:
            call = asyncio.get_running_loop().run_in_executor(self._device, self._run, key, items, size)
            results = [(entry, result, None) for entry, result in zip(entries, await call, strict=True)]
        except Exception as error:  # of any type: it concerns this batch, and the next one may succeed
            log.error("a batch of %d images failed", len(items), exc_info=error)
            failure = BatchError("the batch of this request failed; the log of the server has the details")
            results = [(entry, None, failure) for entry in entries]
        self._seconds = time.monotonic() - start
        for entry, result, error in results:
            if entry.future.done():  # the caller was cancelled
                continue
            if error is None:
                entry.future.set_result(result)
            else:
                entry.future.set_exception(error)
        if self._observer is not None:
            self._observer.batch_done(len(items), size, self._seconds)
