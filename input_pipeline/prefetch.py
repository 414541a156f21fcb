"""Prefetches batches to the device in a background thread, and supports exact resumption."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from input_pipeline.errors import ConfigError

_END = object()


def prefetch_to_device(iterator: Iterator, put: Callable[[Any], Any] | None = None, size: int = 2) -> Prefetched:
    """Prepares batches in a background thread, up to `size` ahead.

    Args:
        iterator: iterator over batches. If it has `get_state` and `set_state`, so does the result, whose state refers
            to the last batch returned, not to prefetched ones.
        put: called in the thread on each batch, usually `jax.device_put` with a sharding; the result replaces the
            batch.
        size: number of batches to prefetch; 0 to prepare batches on demand, without a thread.
    """
    return Prefetched(iterator, put or (lambda batch: batch), size)


class Prefetched:
    """Iterator over prefetched batches; see `prefetch_to_device`. Other attributes belong to the inner iterator."""

    def __init__(self, iterator: Iterator, put: Callable[[Any], Any], size: int):
        if size < 0:
            raise ConfigError(f"config.data.prefetch must be at least 0, got {size}")
        self._iterator = iterator
        self._put = put
        self._size = size
        self._has_state = hasattr(iterator, "get_state")
        self._state = iterator.get_state() if self._has_state else None
        self._worker: _Worker | None = None
        self._ended = False

    def __iter__(self):
        return self

    def __len__(self) -> int:
        return len(self._iterator)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # Forwards `problems`, `epoch` and other attributes of the inner iterator.
        return getattr(self.__dict__["_iterator"], name)

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        batch, self._state = self._get_next()
        return batch

    def _get_next(self) -> tuple[Any, Any]:
        if not self._size:
            try:
                return _prepare_next(self._iterator, self._put)
            except StopIteration:
                self._ended = True
                raise
        if self._worker is None:
            self._worker = _Worker(self._iterator, self._put, self._size)
        result, error = self._worker.get()
        if result is not _END:
            return result
        self._stop()
        if error is not None:
            raise error
        self._ended = True
        raise StopIteration

    def get_state(self) -> Any:
        """Returns the state of the inner iterator at the last batch returned."""
        if not self._has_state:
            raise AttributeError("the prefetched iterator has no state")
        return self._state

    def set_state(self, state: Any) -> None:
        """Discards prefetched batches and resumes from a state returned by `get_state`."""
        self._stop()
        self._iterator.set_state(state)
        self._state = state
        self._ended = False

    def close(self) -> None:
        """Stops the thread, closes the inner iterator and ends the iteration. Idempotent."""
        self._stop()
        self._ended = True
        if hasattr(self._iterator, "close"):
            self._iterator.close()

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def _prepare_next(iterator: Iterator, put: Callable[[Any], Any]) -> tuple[Any, Any]:
    batch = next(iterator)
    state = iterator.get_state() if hasattr(iterator, "get_state") else None
    return put(batch), state


class _Worker:
    """Thread with a queue of ((batch, state), None) items, followed by (_END, error or None)."""

    def __init__(self, iterator: Iterator, put: Callable[[Any], Any], size: int):
        self._queue: queue.Queue = queue.Queue(maxsize=size)
        self._stopping = threading.Event()
        arguments = (iterator, put, self._queue, self._stopping)
        # The thread holds no reference to this object, so it also stops when the iterator is garbage-collected.
        self._thread = threading.Thread(target=_fill_queue, args=arguments, name="prefetch", daemon=True)
        # A daemon thread inside the device runtime can crash the interpreter at shutdown. The finalizer stops the
        # thread before that, at exit or when this object is garbage-collected.
        self._finalizer = weakref.finalize(self, _stop_thread, self._thread, self._queue, self._stopping)
        self._thread.start()

    def get(self) -> tuple[Any, BaseException | None]:
        return self._queue.get()

    def stop(self) -> None:
        self._finalizer()


def _fill_queue(iterator: Iterator, put: Callable[[Any], Any], ready: queue.Queue, stopping: threading.Event) -> None:
    last_item: tuple[Any, BaseException | None] = (_END, None)
    try:
        while not stopping.is_set():
            ready.put((_prepare_next(iterator, put), None))
    except StopIteration:
        pass
    except BaseException as error:  # raised in the consumer
        last_item = (_END, error)
    ready.put(last_item)


def _stop_thread(thread: threading.Thread, ready: queue.Queue, stopping: threading.Event) -> None:
    stopping.set()
    while thread.is_alive():
        try:  # the thread may be blocked on a full queue
            ready.get(timeout=0.02)
        except queue.Empty:
            continue
    thread.join()
