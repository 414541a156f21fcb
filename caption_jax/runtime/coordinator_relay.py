"""A local relay between JAX and its coordination service in process 0.

JAX aborts a process, with a stack trace and without the name of any process, as soon as its connection to process 0
closes. The relay keeps this connection open after process 0 has ended, so that `caption_jax.runtime.liveness` can name
it and end the process in order.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

_RETRY_SECONDS = 0.2
_PART = 1 << 16  # bytes per read
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # in which gRPC looks for a proxy
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")  # the first that is set counts


def start_relay(coordinator: str, timeout_seconds: float) -> str:
    """Starts threads that relay connections to process 0 until this process ends.

    Args:
        coordinator: HOST:PORT of the service, which may start later.
        timeout_seconds: how long to wait for the service.

    Returns:
        HOST:PORT to connect to, which only programs on this host can reach.
    """
    server = socket.create_server(("127.0.0.1", 0))
    host, _, port = coordinator.rpartition(":")
    target = (host.strip("[]"), int(port))
    _start_thread(_accept, server, target, timeout_seconds)
    _bypass_proxy("127.0.0.1")
    return f"127.0.0.1:{server.getsockname()[1]}"


def _bypass_proxy(host: str) -> None:
    """Makes gRPC connect to a host directly even if the environment names a proxy."""
    if any(os.environ.get(name) for name in _PROXY_VARIABLES):
        exceptions = next((value for name in _EXCEPTION_VARIABLES if (value := os.environ.get(name))), "")
        os.environ[_EXCEPTION_VARIABLES[0]] = ",".join(filter(None, [exceptions, host]))


def _accept(server: socket.socket, target: tuple[str, int], timeout_seconds: float) -> None:
    while True:
        connection, _ = server.accept()
        _start_thread(_relay, connection, target, timeout_seconds)


def _relay(connection: socket.socket, target: tuple[str, int], timeout_seconds: float) -> None:
    """Copies bytes between JAX and the service until JAX closes its side."""
    service = _connect(target, time.monotonic() + timeout_seconds)
    if service is None:
        connection.close()  # JAX tries again, and has its own timeout
        return
    for end in (connection, service):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start_thread(_copy, service, connection)
    _copy(connection, service)
    for end in (connection, service):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # ends the other thread
        end.close()


def _connect(target: tuple[str, int], deadline: float) -> socket.socket | None:
    while True:
        try:
            service = socket.create_connection(target, timeout=10)
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(_RETRY_SECONDS)
            continue
        service.settimeout(None)
        return service


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copies bytes until `source` is closed. `target` remains open; once it is closed, the bytes are discarded."""
    with contextlib.suppress(OSError):
        while part := source.recv(_PART):
            with contextlib.suppress(OSError):
                target.sendall(part)


def _start_thread(function: object, *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, name="coordinator relay", daemon=True).start()
