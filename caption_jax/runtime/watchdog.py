"""Detection of a process that hangs: what every thread is doing is logged, and the process optionally ends.

A step can hang for reasons that raise no error: a file on a network file system that does not answer, a deadlock in a
library, or a collective operation that waits for another host.
"""

from __future__ import annotations

import collections
import contextlib
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from absl import logging

HUNG = 124  # exit status, as of timeout(1)
_START_SECONDS = 3600.0  # limit until enough steps are known
_MIN_STEPS = 5
_WINDOW = 100  # steps


class Watchdog:
    """Watches the steps of training in a thread of its own, until its `with` block ends.

    Args:
        policy: what to do if a step takes too long: "log" the stacks of all threads, or also "end" the process with the
            status `HUNG`; "off" for no watchdog.
        factor: a step may take this many times the median of the last steps.
        seconds: and at least this many seconds.
        now: function that returns a monotonic time in seconds.
    """

    def __init__(self, policy: str, factor: float, seconds: float, now: Callable[[], float] = time.monotonic):
        self._policy, self._factor, self._seconds, self._now = policy, factor, seconds, now
        self._steps: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._lock = threading.Lock()
        self._last: float | None = None  # end of the last step; None while no step is expected
        self._reported = 0.0  # seconds without a step at the last report; 0 before the first
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._policy != "off":
            self._last = self._now()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """Reports that a step has ended, and that another one is expected."""
        with self._lock:
            now = self._now()
            if self._last is not None:
                self._steps.append(now - self._last)
                if self._reported:
                    logging.warning("the watchdog: a step ended after %.0f s", now - self._last)
            self._last, self._reported = now, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Expects no step during the `with` block, such as an evaluation or a compilation."""
        with self._lock:
            last, self._last = self._last, None
        start = self._now()
        try:
            yield
        finally:
            with self._lock:
                # The time of the block does not count.
                self._last = None if last is None else last + self._now() - start

    @property
    def limit(self) -> float:
        """Seconds that a step may take."""
        if len(self._steps) < _MIN_STEPS:
            return max(_START_SECONDS, self._seconds)
        return max(self._factor * statistics.median(self._steps), self._seconds)

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 5.0)):
            self._check()

    def _check(self) -> None:
        with self._lock:
            elapsed = 0.0 if self._last is None else self._now() - self._last
            # Reported again only after twice the time, so that the log does not grow without limit.
            is_late = elapsed > max(self.limit, 2 * self._reported)
            if is_late:
                self._reported = elapsed
            limit = self.limit
        if not is_late:
            return
        message = f"no training step for {elapsed:.0f} s (limit: {limit:.0f} s, see config.train.watchdog)"
        stacks = format_stacks().splitlines()
        logging.error("\n".join(["the watchdog: %s. Stacks of all threads:", *["%s"] * len(stacks)]), message, *stacks)
        if self._policy == "end":
            with contextlib.suppress(OSError):
                os.write(2, f"error: {message}: ended; the same command resumes the last checkpoint\n".encode())
            os._exit(HUNG)


def format_stacks() -> str:
    """Returns the stack of each Python thread, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    main = threading.main_thread().ident
    lines = []
    for ident in sorted(frames, key=lambda ident: (ident != main, ident)):
        if ident != threading.get_ident():
            stack = "".join(traceback.format_stack(frames[ident])).rstrip()
            lines.append(f"thread {names.get(ident, ident)}:\n{stack}")
    return "\n".join(lines)
