"""Signals that end a command: SIGTERM, SIGHUP and SIGINT (Ctrl-C).

By default, the first signal raises `SignalReceived` in the main thread. Code that has a state to save calls `defer`;
from then on, the first signal is only recorded. Python runs the handlers of signals between two instructions of the
main thread, which may be busy for minutes with a compilation. A second thread therefore receives all signals as well,
and ends the process if the main thread does not, or if a second signal arrives. If the exception is lost in a callback
of a library, it is raised again. While an extension module in C or C++ is initialised, it is not raised, because many
of them crash if Python code that they call fails.

When a command is complete (`keep_status`), a signal no longer changes its exit status.

All files are written atomically, so ending the process at any time leaves earlier checkpoints and results intact.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
GRACE_SECONDS = 10.0  # time in which the main thread must end after the first signal, unless signals are deferred
# A terminal that is closed can send SIGHUP twice, and service managers send SIGTERM and SIGHUP at the same time.
REPEAT_SECONDS = 1.0

_WAKE = 0  # not the number of a signal


class SignalReceived(KeyboardInterrupt):
    """A signal ends the command.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(number: int) -> int:
    """Returns the exit status of a process that a signal ends, as shells report it."""
    return 128 + number


class SignalHandling:
    """The handlers of a process; see the module docstring. Use `handled_signals`.

    Signals that are ignored when it is created remain ignored, such as SIGHUP under `nohup`.

    Attributes:
        received: the first signal; None before it.
        raised: whether it was raised in the main thread.
        status: exit status after the first signal; None for 128 + the number of the signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raised = False
        self.status: int | None = None
        self._final_status: int | None = None
        self._is_deferred = False
        self._action = ""  # what the process does after a deferred signal
        self._forwarded_to: int | None = None
        self._deadline: float | None = None
        self._previous: dict[int, object] = {}
        self._is_lost = False  # whether the exception must be raised again
        self._repeats = 0  # signals that this process has sent to itself for this
        self._terminals = [descriptor for descriptor in (0, 1, 2) if _is_terminal(descriptor)]

    def install(self) -> None:
        """Installs the handlers. Call it in the main thread; `close` restores the previous handlers."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._handle_unraisable
        self.reinstall()

    def reinstall(self) -> None:
        """Installs the handlers again, after a library has replaced them."""
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:
                self._previous.setdefault(number, handler)
                signal.signal(number, self._handle)

    def keep_status(self, status: int) -> None:
        """Makes signals after `close` end the process with `status` at once: the command is complete, and only exits.

        Exit handlers can take a second. When they run, signals are ignored, because Python removes its handlers then.
        """
        self._final_status = status
        for number in self._previous:
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def close(self) -> None:
        """Restores the previous handlers, or installs those of a complete command, and ends the thread."""
        self._is_lost = False
        status = self._final_status
        for number, handler in self._previous.items():
            signal.signal(number, handler if status is None else lambda *_: os._exit(status))
        signal.set_wakeup_fd(self._previous_wakeup)
        sys.unraisablehook = self._previous_hook
        os.close(self._writer)  # ends the thread
        self._thread.join()
        os.close(self._reader)

    def get_status(self, number: int) -> int:
        """Returns the exit status after a first signal."""
        return exit_status(number) if self.status is None else self.status

    def defer(self, forward_to: int | None = None, action: str = "saving and stopping") -> None:
        """Only records the first signal from now on.

        Args:
            action: what the process does after the signal, for a message.
            forward_to: a signal with a handler outside Python, which is sent to this process instead of recording.
        """
        self._is_deferred, self._forwarded_to, self._action = True, forward_to, action
        if self._deadline is not None:  # the exception was lost
            self._deadline = None
            self._wake()

    def stop_deferring(self) -> int | None:
        """Raises signals again. Returns a signal that was deferred, or None."""
        if self._forwarded_to is not None and self._previous:
            self.reinstall()
        self._is_deferred, self._forwarded_to = False, None
        return self.received

    def raise_received(self) -> None:
        """Raises the signal that was deferred.

        Raises:
            SignalReceived: always.
        """
        self.raised = True
        self._wake()  # starts the grace period
        raise SignalReceived(self.received)

    def _wake(self) -> None:
        """Wakes the other thread."""
        if self._previous:
            with contextlib.suppress(BlockingIOError):  # the pipe is full, so the thread is awake
                os.write(self._writer, bytes([_WAKE]))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Called in the main thread."""
        if self.received is not None and not self._is_lost:  # the other thread handles a second signal
            return
        is_first, self._is_lost = self.received is None, False
        self.received = number if is_first else self.received
        if is_first and self._forwarded_to is not None:
            os.kill(os.getpid(), self._forwarded_to)
        elif is_first and self._is_deferred:
            return
        elif _initialises_extension(frame):
            self._is_lost = True  # until the other thread sends the signal again
            self._wake()
        else:
            self.raise_received()

    def _handle_unraisable(self, unraisable: Any) -> None:
        """Called for an exception in a finalizer or a callback, where it cannot propagate."""
        if not isinstance(unraisable.exc_value, SignalReceived):
            self._previous_hook(unraisable)
            return
        self._is_lost = True
        self._wake()

    def _watch(self) -> None:
        """Runs in the other thread until the pipe is closed."""
        first: int | None = None
        first_time = 0.0
        while True:
            timeout = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
            if not select.select([self._reader], [], [], timeout)[0]:
                _end_process(first, self.get_status(first), "did not end within {GRACE_SECONDS:.0f} s, ended at once")
            numbers = os.read(self._reader, 1)
            if not numbers:
                return
            number, now = numbers[0], time.monotonic()
            if number == _WAKE and self._is_lost and not self._repeats:
                self._repeat(first)
            elif number == first and self._repeats:
                self._repeats -= 1
            elif number in self._previous and first is None:
                first, first_time = number, now
                self._announce(number)
            elif number in self._previous and now - first_time >= REPEAT_SECONDS:
                _end_process(number, exit_status(number), "second signal, ended at once")
            if first is not None and not self._is_deferred and self._deadline is None:
                self._deadline = now + GRACE_SECONDS

    def _repeat(self, number: int) -> None:
        """Sends the first signal to the main thread again, in which its exception was lost."""
        time.sleep(0.02)  # until the callback has returned
        if self._is_lost:
            self._repeats += 1
            signal.pthread_kill(threading.main_thread().ident, number)

    def _announce(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._replace_terminals()
        if self._is_deferred:
            _print_error(f"{signal.Signals(number).name}: {self._action}; a second signal ends at once")

    def _replace_terminals(self) -> None:
        """Sends output to a terminal that was closed to /dev/null, because writing to it raises errors."""
        for descriptor in self._terminals:
            if not _is_terminal(descriptor):
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)


_handling: SignalHandling | None = None


@contextlib.contextmanager
def handled_signals() -> Iterator[SignalHandling]:
    """Handles signals until the end of the `with` block. Nested blocks share the handlers of the outermost one.

    Outside the main thread, which receives all signals, there is nothing to handle.

    Yields:
        The handlers of this process.
    """
    global _handling
    if _handling is not None or threading.current_thread() is not threading.main_thread():
        yield _handling or SignalHandling()
        return
    _handling = SignalHandling()
    _handling.install()
    try:
        yield _handling
    finally:
        handling, _handling = _handling, None
        handling.close()


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _initialises_extension(frame: FrameType | None) -> bool:
    """Returns whether an extension module is being loaded by a frame or one of its callers."""
    while frame is not None:
        if frame.f_code.co_name in ("create_module", "exec_module"):
            loader = frame.f_locals.get("self")
            if isinstance(loader, importlib.machinery.ExtensionFileLoader):
                return True
        frame = frame.f_back
    return False


def _end_process(number: int, status: int, reason: str) -> None:
    _print_error(f"{signal.Signals(number).name}: {reason.format(GRACE_SECONDS=GRACE_SECONDS)}")
    os._exit(status)


def _print_error(line: str) -> None:
    """Writes a line to stderr without the locks of Python's streams, which the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
