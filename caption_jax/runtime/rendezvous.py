"""Meeting of the processes of a run at the address of the coordinator, before JAX connects them there.

If a process is missing, JAX ends the others with a stack trace that does not name it. Here, process 0 waits for the
others, and tells all of them which ones are missing. Nothing listens at the address any more when JAX uses it, but the
connections stay open: `caption_jax.runtime.liveness` notices by them that a process has ended.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caption_jax.errors import ProcessesError

_REMEDY = "start the same command on all hosts, or use --distributed=off for a single process"
_RETRY_SECONDS = 0.5
_MESSAGE_SECONDS = 10  # for a message after the connection is established
_MAX_MESSAGE = 1 << 16  # bytes


@dataclass(frozen=True)
class Meeting:
    """The processes that have met.

    Attributes:
        index: index of this process.
        hosts: host name of each process.
        connections: open connections by process: to all others in process 0, and to process 0 in the others.
    """

    index: int
    hosts: tuple[str, ...]
    connections: Mapping[int, socket.socket]

    def close(self) -> None:
        """Closes the connections."""
        for connection in self.connections.values():
            connection.close()


def meet(address: str, index: int, count: int, timeout_seconds: float) -> Meeting:
    """Returns when all processes have called this function.

    Args:
        address: HOST:PORT of process 0.
        index: index of this process.
        count: number of processes.
        timeout_seconds: how long to wait for the others.

    Raises:
        ProcessesError: a process is missing or has another `count`, two have the same `index`, or the address cannot
            be used. All processes that can be reached raise the same message.
    """
    deadline = time.monotonic() + timeout_seconds
    if index == 0:
        return _lead(address, count, deadline, timeout_seconds)
    return _follow(address, index, count, deadline, timeout_seconds)


def _lead(address: str, count: int, deadline: float, timeout_seconds: float) -> Meeting:
    """Waits for the other processes, and sends each of them their hosts, or the error that all of them raise."""
    hosts: dict[int, str] = {0: _host()}
    members: dict[int, socket.socket] = {}
    connections: list[socket.socket] = []
    error = ""
    with contextlib.ExitStack() as stack:
        with _listen(address) as server:
            while not error and len(hosts) < count:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    connection = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    error = _describe_missing([index for index in range(count) if index not in hosts], count)
                    error = f"{error} within {timeout_seconds:.0f} s: {_REMEDY}"
                    break
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # other programs may connect, too
                    message = _receive(connection)
                    index, host = int(message["index"]), str(message["host"])
                    connections.append(connection)
                    error = _check_member(index, host, message["count"], count, hosts)
                    hosts[index], members[index] = host, connection
        names = [hosts.get(index, "") for index in range(count)]
        for connection in connections:
            with contextlib.suppress(OSError):  # the process has ended
                _send(connection, {"error": error, "hosts": names})
        if not error:
            stack.pop_all()  # the connections stay open
            return Meeting(0, tuple(names), members)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.recv(1)  # closed by the other side first, so that the address is free at once
    raise ProcessesError(error)


def _describe_missing(missing: list[int], count: int) -> str:
    names = ", ".join(map(str, missing))
    return f"process{'es' * (len(missing) > 1)} {names} of {count} did not connect to process 0 ({_host()})"


def _check_member(index: int, host: str, member_count: int, count: int, hosts: Mapping[int, str]) -> str:
    """Returns what is wrong with a process that has connected; "" if nothing is."""
    if member_count != count:
        return (
            f"process {index} ({host}) expects {member_count} processes, but process 0 ({_host()}) expects {count}: "
            "set the same JAX_NUM_PROCESSES in all processes"
        )
    if index in hosts:
        return f"{hosts[index]} and {host} both have process {index}: set another JAX_PROCESS_ID in each process"
    return ""


def _follow(address: str, index: int, count: int, deadline: float, timeout_seconds: float) -> Meeting:
    host, _, port = address.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_MESSAGE_SECONDS)
            break
        except OSError as error:  # process 0 has not started yet, or the host is unknown
            if time.monotonic() > deadline:
                raise ProcessesError(
                    f"process {index} ({_host()}) of {count} could not connect to process 0 at {address} within "
                    f"{timeout_seconds:.0f} s ({error}): check that it is running, and that no firewall blocks the "
                    f"port; {_REMEDY}"
                ) from error
        time.sleep(_RETRY_SECONDS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        try:
            _send(connection, {"index": index, "count": count, "host": _host()})
            # Process 0 may have started later than this process.
            connection.settimeout(max(deadline - time.monotonic(), 0) + timeout_seconds + _MESSAGE_SECONDS)
            reply = _receive(connection)
            failure, hosts = str(reply["error"]), tuple(map(str, reply["hosts"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProcessesError(
                f"process 0 at {address} ended, or another program listens there ({error}): see the log of process 0; "
                f"{_REMEDY}"
            ) from error
        if not failure:
            stack.pop_all()  # the connection stays open
            return Meeting(index, hosts, {0: connection})
    raise ProcessesError(failure)


@contextlib.contextmanager
def _listen(address: str) -> Iterator[socket.socket]:
    """Opens a server at the port of an address, for IPv6 and IPv4 if possible."""
    port = int(address.rpartition(":")[2])
    try:
        server = _create_server(port)
    except OSError as error:
        raise ProcessesError(
            f"process 0 cannot listen on port {port} of {_host()} ({error.strerror}): end the program that uses it, or "
            "set another port in JAX_COORDINATOR_ADDRESS, or JAX_COORDINATOR_PORT under SLURM and on TPUs"
        ) from error
    with server:
        yield server


def _create_server(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be disabled
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    if connection.gettimeout() is None:
        connection.settimeout(_MESSAGE_SECONDS)
    content = b""
    while not content.endswith(b"\n"):
        part = connection.recv(1)  # what follows the message belongs to `caption_jax.runtime.liveness`
        content += part
        if not part or len(content) > _MAX_MESSAGE:
            raise ValueError("not a message of this program")
    return json.loads(content)


def _host() -> str:
    return socket.gethostname()
