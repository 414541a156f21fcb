"""Ends the processes of a run when one of them ends, with one line that names it.

The connections of the rendezvous stay open during the run: from each process to process 0. The operating system closes
those of a process that is killed, and a host that is silent for `heartbeat_seconds` is taken for lost. A thread notices
either, even if the main thread waits for the lost process in a collective operation, and ends its own process.

This module does not import JAX.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from caption_jax.runtime.rendezvous import Meeting
from input_pipeline.terminal_text import escape_message

HEARTBEAT_SECONDS = 60.0
PEER_FAILED = 1  # exit status if another process reports an error
PEER_LOST = 69  # exit status if another process was killed, or its host is silent

_CLEANUP_SECONDS = 60  # for a process that has reported an error
_FAILURE_SECONDS = 2  # from the error of one process to the end of the others, which may raise one as well
_SHARED_ERROR_SECONDS = 10  # the same if all processes should raise it
_CONSEQUENCE_SECONDS = 5  # until a lost process is noticed, after an error that may be a consequence of it
_CALL_SECONDS = 5  # for what a process does before its end, such as to find out which step is saved
_SEND_SECONDS = 5

_current: PeerWatch | None = None


class PeerWatch:
    """Watches the other processes of a run.

    Args:
        meeting: the processes and their connections.
        heartbeat_seconds: the silence after which a process is taken for lost.
        end_process: ends this process with an exit status; tests replace it.
    """

    def __init__(
        self,
        meeting: Meeting,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        end_process: Callable[[int], None] = os._exit,
    ):
        self._meeting, self._heartbeat, self._end_process = meeting, heartbeat_seconds, end_process
        self._connections = dict(meeting.connections)
        self._received: dict[int, bytes] = dict.fromkeys(self._connections, b"")
        self._last_seen: dict[int, float] = {}
        self._departed: set[int] = set()  # processes that may close their connection
        self._verdict: tuple[float, str, int] | None = None  # when to end this process, the line, and the status
        self._send_lock, self._end_lock = threading.Lock(), threading.Lock()
        self._has_left = self._is_complete = self._is_ending = False
        self._find_saved_step: Callable[[], int | None] | None = None
        self._cleanups: list[Callable[[], None]] = []
        for connection in self._connections.values():
            connection.settimeout(_SEND_SECONDS)
        if hasattr(os, "register_at_fork"):  # a worker process that survives would keep the connections open
            os.register_at_fork(after_in_child=meeting.close)
        self._thread = threading.Thread(target=self._watch, name="watching the other processes", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def set_saved_step(self, find: Callable[[], int | None]) -> None:
        """Sets the function that finds the training step that is saved, for the line; None if there is none yet."""
        self._find_saved_step = find

    def call_before_end(self, function: Callable[[], None]) -> None:
        """Calls a function, for at most a few seconds, before this process ends because another one has ended."""
        self._cleanups.append(function)

    def report_failure(self, reason: str, *, may_be_consequence: bool = False) -> None:
        """Ends the other processes, with a line that names this process. Returns before this process ends.

        If another process has failed first, this process ends with that line instead. Does nothing after `leave`, and
        when this process has already reported something.

        Args:
            reason: why this process cannot go on.
            may_be_consequence: whether the reason may be that another process was lost.
        """
        if may_be_consequence and not self._has_left:
            time.sleep(_CONSEQUENCE_SECONDS)  # the thread may end the process meanwhile
        self._report(f"{self._name(self.index)} failed: {reason}", PEER_FAILED, _FAILURE_SECONDS, reason)

    def report_shared_failure(self, reason: str) -> None:
        """Like `report_failure`, for an error that the other processes are about to raise as well."""
        self._report(reason, PEER_FAILED, _SHARED_ERROR_SECONDS, reason)

    def report_interruption(self, cause: str) -> None:
        """Like `report_failure`, for a signal that ends this process."""
        reason = f"was interrupted ({cause})"
        self._report(f"{self._name(self.index)} {reason}", PEER_LOST, _FAILURE_SECONDS, reason)

    def _report(self, line: str, status: int, grace: float, reason: str) -> None:
        if self._is_ending:
            self._thread.join()  # which ends the process; its line names the cause of the error of this thread
        if self._has_left:
            return
        self._end_lock.acquire()  # never released: the thread must not end this process with another line
        self._has_left = True
        self._broadcast({"end": line, "status": status, "grace": grace})
        limit = threading.Timer(_CLEANUP_SECONDS, self._end_with, (reason, PEER_FAILED))
        limit.daemon = True
        limit.start()  # what this process still has to close may wait for the others, which have ended

    def leave(self) -> None:
        """Stops watching, because all processes have completed the run."""
        self._has_left = self._is_complete = True
        self._broadcast({"bye": True})

    @property
    def index(self) -> int:
        """Index of this process."""
        return self._meeting.index

    @property
    def is_complete(self) -> bool:
        """Whether `leave` has been called."""
        return self._is_complete

    def _name(self, index: int) -> str:
        return f"process {index} ({self._meeting.hosts[index]})"

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for index, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, index)
            self._last_seen[index] = time.monotonic()
        interval = min(self._heartbeat / 4, 5.0)
        next_beat = previous = time.monotonic()
        while not self._has_left:
            for key, _ in selector.select(self._compute_wait(next_beat)):
                if not self._read(key.data):
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if now - previous > self._heartbeat / 2:  # this process was suspended, so the messages are late
                self._last_seen = dict.fromkeys(self._last_seen, now)
            previous = now
            if now >= next_beat:
                self._broadcast({"beat": True})
                next_beat = now + interval
            self._check_silence(now)
            if self._verdict is not None and now >= self._verdict[0]:
                self._end(*self._verdict[1:])
                return

    def _compute_wait(self, next_beat: float) -> float:
        deadline = next_beat if self._verdict is None else min(next_beat, self._verdict[0])
        return max(deadline - time.monotonic(), 0)

    def _read(self, index: int) -> bool:
        """Reads the messages of a process; returns whether its connection is open."""
        try:
            part = self._connections[index].recv(1 << 16)
        except TimeoutError:
            return True
        except OSError:
            part = b""
        if not part:
            if index not in self._departed:
                self._lose(index, "was killed or has crashed: see its log")
            return False
        self._last_seen[index] = time.monotonic()
        *lines, self._received[index] = (self._received[index] + part).split(b"\n")
        try:
            for line in lines:
                self._handle(index, json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            self._lose(index, f"sent a message that is not one of this program ({error}): use one version on all hosts")
            return False
        return True

    def _handle(self, index: int, message: Mapping[str, Any]) -> None:
        if "bye" in message:
            self._departed.add(index)
        elif "end" in message:
            self._departed.add(index)
            if self._meeting.index == 0:
                self._broadcast(message, but=index)
            self._decide(message["end"], message["status"], message["grace"])

    def _check_silence(self, now: float) -> None:
        for index, last_seen in self._last_seen.items():
            if index not in self._departed and now - last_seen > self._heartbeat:
                self._lose(index, f"has been silent for {self._heartbeat:g} s (--heartbeat): see its log and its host")

    def _lose(self, index: int, reason: str) -> None:
        if self._has_left:
            return
        self._departed.add(index)
        line = f"{self._name(index)} {reason}"
        if self._meeting.index == 0:
            self._broadcast({"end": line, "status": PEER_LOST, "grace": 0}, but=index)
        self._decide(line, PEER_LOST, 0)

    def _decide(self, line: str, status: int, grace: float) -> None:
        """Schedules the end of this process; the first line counts unless it is an error that all processes raise."""
        end = time.monotonic() + grace
        if self._verdict is None or end < self._verdict[0]:
            self._verdict = end, line, status

    def _end(self, line: str, status: int) -> None:
        if not self._end_lock.acquire(blocking=False):
            return  # the main thread is ending this process
        self._is_ending = self._has_left = True
        self._end_with(line, status)

    def _end_with(self, line: str, status: int) -> None:
        text = f"error: {escape_message(line)}{self._describe_remedy(status)}\n"
        if sys.stderr is not None and sys.stderr.isatty():
            text = f"\r\x1b[2K{text}"  # instead of the progress
        for cleanup in self._cleanups:
            _run_for(_CALL_SECONDS, _Call(cleanup))
        _run_for(_CALL_SECONDS, flush_output)
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        self._end_process(status)

    def _describe_remedy(self, status: int) -> str:
        step = None
        if self._find_saved_step is not None:
            _run_for(_CALL_SECONDS, search := _Call(self._find_saved_step))
            step = search.result
        if step is not None:
            return f"; step {step} is saved: run the same command again to resume"
        if status != PEER_LOST:
            return ""
        return f"; {'no step is saved yet: ' * (self._find_saved_step is not None)}run the same command again"

    def _broadcast(self, message: Mapping[str, Any], but: int = -1) -> None:
        """Sends a message to all connected processes."""
        line = json.dumps(message).encode() + b"\n"
        with self._send_lock:
            for index, connection in self._connections.items():
                if index != but:
                    with contextlib.suppress(OSError):  # noticed when reading
                        connection.sendall(line)


def start_watching(meeting: Meeting, heartbeat_seconds: float) -> PeerWatch:
    """Starts watching the other processes of this process."""
    global _current
    _current = PeerWatch(meeting, heartbeat_seconds)
    _current.start()
    return _current


def current_watch() -> PeerWatch | None:
    """Returns what watches the other processes; None if there are none."""
    return _current


def flush_output() -> None:
    """Flushes stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


class _Call:
    """A function, and its result; None if it has not returned, or has raised an error."""

    def __init__(self, function: Callable[[], Any]):
        self._function, self.result = function, None

    def __call__(self) -> None:
        with contextlib.suppress(Exception):
            self.result = self._function()


def _run_for(seconds: float, function: Callable[[], None]) -> None:
    """Calls a function that may block, and returns after at most `seconds`."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
