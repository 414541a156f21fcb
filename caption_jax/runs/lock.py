"""Lock of a workdir, which only one training run at a time may hold.

The lock is the file `training.lock` with the process that holds it (`Holder`). A thread of that process renews the
file's modification time. The lock is stale if the process has ended, which is known at once on the same machine; on
another machine, it is stale if it has not been renewed for several minutes.

A stale lock is taken over in two steps, so that only one of several processes succeeds: the process creates
`.training.lock.<token of the stale lock>`, and replaces the lock if that has not changed meanwhile. If it is killed in
between, that file is a stale lock too, and is taken over in the same way.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from absl import logging
from etils import epath

from caption_jax.errors import LockedError, UserError, WorkdirError
from caption_jax.runs.agreement import check_workdir, reported_failures
from caption_jax.runs.lock_files import (
    create_exclusively,
    identify_folder,
    read_if_exists,
    renew,
    seconds_since_renewal,
)
from caption_jax.runs.lock_holder import Holder, format_duration, parse_holder, this_process
from caption_jax.runtime.liveness import current_watch
from input_pipeline.files import is_on_bucket, write_atomically

LOCK_FILE = "training.lock"

RENEWAL_SECONDS = 30.0
STALE_SECONDS = 300.0
# A lock that was renewed more recently is that of a running process. Older locks are watched until they are stale.
_FRESH_SECONDS = 75.0
_POLL_SECONDS = 2.0
_INCOMPLETE_SECONDS = 2.0  # where files cannot be linked, a lock has no content for an instant


class WorkdirLock:
    """A lock that this process holds. `check` raises an error if it has lost the lock."""

    def __init__(self, file: epath.Path, holder: Holder):
        self._file, self._holder = file, holder
        self._folder_id = identify_folder(file.parent)
        self._error: UserError | None = None
        self._has_warned = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_repeatedly, name="workdir-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of the thread that renews the lock; takes no time.

        Raises:
            LockedError: another process has taken over the lock.
            WorkdirError: the workdir was deleted.
        """
        if self._error is not None:
            raise self._error

    def renew(self) -> None:
        """Renews the lock; creates it again if its file was deleted."""
        content = read_if_exists(self._file)
        if content is None and identify_folder(self._file.parent) != self._folder_id:
            self._error = WorkdirError(f"--workdir={self._file.parent} was deleted during training")
        elif content is None:
            create_exclusively(self._file, self._holder.to_json())  # the next renewal finds out whether this succeeded
        elif parse_holder(content).token != self._holder.token:
            self._error = LockedError(
                f"--workdir={self._file.parent} was taken over by another run ({parse_holder(content)}): this run "
                "ends, because both would write to the same files"
            )
        else:
            renew(self._file, content)

    def release(self) -> None:
        """Stops renewing the lock and deletes it, if this process still holds it."""
        self._released.set()
        self._thread.join(timeout=RENEWAL_SECONDS)  # which may wait for a network disk that does not answer
        with _logged_errors(f"cannot delete {self._file}"):
            content = read_if_exists(self._file)
            if content is not None and parse_holder(content).token == self._holder.token:
                self._file.unlink(missing_ok=True)

    def _renew_repeatedly(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS) and self._error is None:
            try:
                self.renew()
            except Exception as error:  # of the operating system or of a bucket's client, which may be temporary
                if not self._has_warned:
                    logging.warning("cannot renew %s: %s: %s", self._file, type(error).__name__, error)
                self._has_warned = True


class LockedWorkdir(NamedTuple):
    """A workdir that is locked for this run.

    Attributes:
        workdir: the workdir.
        check: raises an error if the lock was lost; see `WorkdirLock.check`.
    """

    workdir: epath.Path
    check: Callable[[], None]

    def checked(self, stop_requested: Callable[[int], bool]) -> Callable[[int], bool]:
        """Returns a function that calls `check` before `stop_requested`."""

        def checked_stop_requested(step: int) -> bool:
            self.check()
            return stop_requested(step)

        return checked_stop_requested


@contextlib.contextmanager
def lock_workdir(workdir: epath.Path) -> Iterator[LockedWorkdir]:
    """Locks a workdir for training until the end of the `with` block. Creates it if it does not exist.

    Process 0 holds the lock for all processes of a run.

    Raises:
        LockedError: another run is training in the workdir; the message names its process, host and age.
        WorkdirError: see `check_workdir`.
        ProcessesError: see `check_workdir`.
        OSError: the lock cannot be written.
    """
    check_workdir(workdir)
    if jax.process_index() > 0:
        yield LockedWorkdir(workdir, lambda: None)
        return
    with reported_failures():
        is_new = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        lock = acquire(workdir / LOCK_FILE)
    if (watch := current_watch()) is not None:
        watch.call_before_end(lock.release)
    try:
        yield LockedWorkdir(workdir, lock.check)
    finally:
        lock.release()
        if is_new and not is_on_bucket(workdir):
            with contextlib.suppress(OSError):
                os.rmdir(workdir)  # only if the run has written nothing


def acquire(file: epath.Path) -> WorkdirLock:
    """Takes a lock, and takes over stale locks.

    Raises:
        LockedError: another process holds the lock.
    """
    holder = this_process()
    content = holder.to_json()
    while not create_exclusively(file, content):
        stale = _wait_until_stale(file)
        if stale is not None and _take_over(file, stale, content):
            logging.info("the run that last held %s has ended (%s)", file, stale)
            break
    return WorkdirLock(file, holder)


def _take_over(file: epath.Path, stale: Holder, content: str) -> bool:
    """Replaces a stale lock; returns False if it has changed meanwhile."""
    claims = []
    token = stale.token
    while True:
        claim = file.with_name(f".{file.name}.{token}")
        claims.append(claim)
        if create_exclusively(claim, content):
            break
        former = _wait_until_stale(claim)  # another process was taking over the lock
        if former is None:
            return False
        token = former.token
    try:
        current = read_if_exists(file)
        if current is None or parse_holder(current).token != stale.token:
            claims = claims[-1:]  # the others are not owned by this process
            return False
        write_atomically(file, content)
        return True
    finally:
        for claim in claims:
            claim.unlink(missing_ok=True)


def _wait_until_stale(file: epath.Path) -> Holder | None:
    """Returns the holder of a stale lock; None if the lock was deleted.

    Waits if the lock of another machine was renewed neither recently nor long ago.

    Raises:
        LockedError: the holder runs.
    """
    is_waiting = False
    while (content := _read_lock(file)) is not None:
        holder = parse_holder(content)
        is_running = holder.is_running()
        if is_running is False:
            return holder
        try:
            age = seconds_since_renewal(file)
        except FileNotFoundError:
            continue
        if is_running is None and age >= STALE_SECONDS:
            return holder
        if is_running or age < _FRESH_SECONDS:
            raise LockedError(_describe_refusal(file, holder, can_be_stale=not is_running))
        if not is_waiting:
            is_waiting = True
            logging.warning(
                "%s was last renewed %s ago by %s: waiting up to %s to see whether it still runs",
                *(file, format_duration(age), holder, format_duration(STALE_SECONDS - age)),
            )
        time.sleep(_POLL_SECONDS)
    return None


def _read_lock(file: epath.Path) -> str | None:
    """Returns the content of a lock, after waiting for the process that is writing it."""
    deadline = time.monotonic() + _INCOMPLETE_SECONDS
    while (content := read_if_exists(file)) is not None and not parse_holder(content).pid:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return content


def _describe_refusal(file: epath.Path, holder: Holder, *, can_be_stale: bool) -> str:
    remedy = "wait until it ends, stop it, or use another --workdir"
    if can_be_stale:
        remedy += (
            f"; if it no longer runs, start again {format_duration(STALE_SECONDS)} after its end, or delete {file}"
        )
    return f"--workdir={file.parent} is in use by another training run ({holder}): {remedy}"


@contextlib.contextmanager
def _logged_errors(message: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the operating system or of a bucket's client
        logging.warning("%s: %s: %s", message, type(error).__name__, error)
