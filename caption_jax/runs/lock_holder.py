"""The process that holds a lock, and whether it still runs."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
import uuid
from pathlib import Path

from caption_jax.runtime.process import current_command

_MAX_COMMAND = 200  # characters in messages


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as stored in the lock's file.

    Attributes:
        token: random text that identifies this lock.
        pid: process ID.
        host: name of the host.
        machine: identifies the boot of the machine and the namespace of process IDs, so that equal host names of two
            machines or containers are told apart. Process IDs are comparable only if it is equal.
        process_start: start time of the process in the units of the system; "" if unknown. Process IDs are reused.
        started: time at which the lock was taken, in seconds since the epoch.
        command: the command line; "" in a notebook.
    """

    token: str
    pid: int = 0
    host: str = ""
    machine: str = ""
    process_start: str = ""
    started: float = 0.0
    command: str = ""

    def to_json(self) -> str:
        """Returns the content of the lock's file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def is_running(self) -> bool | None:
        """Whether the process still runs; None if this machine cannot tell."""
        if not self.machine or self.machine != _identify_machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is a process of another user
        start = _read_process_start(self.pid)
        if start is None or not self.process_start:
            return None
        return start == self.process_start

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        age = format_duration(time.time() - self.started)
        command = f": {self.command[:_MAX_COMMAND]}" if self.command else ""
        return f"process {self.pid} on {self.host}, started {age} ago{command}"


def this_process() -> Holder:
    """Returns a new holder for the current process."""
    pid = os.getpid()
    return Holder(
        uuid.uuid4().hex,
        pid,
        socket.gethostname(),
        _identify_machine(),
        _read_process_start(pid) or "",
        time.time(),
        current_command(),
    )


def parse_holder(content: str) -> Holder:
    """Parses the content of a lock's file. If it is not valid, the holder is unknown, and its token is the content."""
    try:
        values = json.loads(content)
        holder = Holder(
            str(values["token"]),
            int(values["pid"]),
            str(values["host"]),
            str(values["machine"]),
            str(values["process_start"]),
            float(values["started"]),
            str(values["command"]),
        )
    except (ValueError, TypeError, KeyError):
        return Holder(uuid.uuid5(uuid.NAMESPACE_OID, content).hex)
    if not holder.token.isalnum() or holder.pid <= 0:  # the token becomes part of a file name
        return Holder(uuid.uuid5(uuid.NAMESPACE_OID, content).hex)
    return holder


def format_duration(seconds: float) -> str:
    """Formats a duration such as "12 s", "5 min" or "3 h 5 min"."""
    seconds = max(int(seconds), 0)
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _identify_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _read_process_start(pid: int) -> str | None:
    """Returns the start time of a process; "ended" if only its exit status remains, None if it cannot be read."""
    try:
        # The second field, the name of the program, may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
