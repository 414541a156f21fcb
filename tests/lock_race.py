"""Several processes that take the same lock at the same time.

    python tests/lock_race.py FILE PROCESSES ROUNDS STALE

prints one line per round: how many processes took the lock, how many were refused, and how many failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from etils import epath

from caption_jax.errors import LockedError
from caption_jax.runs.lock import acquire
from caption_jax.runs.lock_holder import this_process

_OUTCOMES = {0: "taken", 1: "refused", 2: "failed"}


def race(file: epath.Path, processes: int, *, stale: bool) -> Counter[str]:
    """Starts processes that take the lock at the same time, and returns their outcomes."""
    if stale:
        pid = os.fork()
        if pid == 0:  # a process that ends with the lock
            file.write_text(this_process().to_json())
            os._exit(0)
        os.waitpid(pid, 0)
    ready, start, done = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            os.close(start[1])
            os.write(ready[1], b"r")
            os.read(start[0], 1)  # ends when the parent closes the pipe
            os._exit(_take(file, done))
        children.append(pid)
    os.close(start[0])
    for _ in children:
        os.read(ready[0], 1)
    os.close(start[1])
    for _ in children:
        os.read(done[0], 1)
    os.close(done[0])  # the process with the lock waits for this
    outcomes = Counter(_OUTCOMES[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] for pid in children)
    for end in (*ready, done[1]):
        os.close(end)
    return outcomes


def _take(file: epath.Path, done: tuple[int, int]) -> int:
    held, status = None, 0
    try:
        held = acquire(file)
    except LockedError:
        status = 1
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 2
    os.write(done[1], b"d")
    os.close(done[0])
    if held is not None:
        _wait_until_closed(done[1])
        held.release()
    return status


def _wait_until_closed(pipe: int) -> None:
    """Waits until no process reads from a pipe."""
    import select

    poll = select.poll()
    poll.register(pipe, select.POLLERR)
    while not any(event & select.POLLERR for _, event in poll.poll()):
        pass


if __name__ == "__main__":
    path, count, rounds, stale = sys.argv[1:]
    for _ in range(int(rounds)):
        print(json.dumps(race(epath.Path(path), int(count), stale=stale == "stale")), flush=True)
