"""The relay passes bytes on, and keeps the connection of JAX open when process 0 has ended."""

from __future__ import annotations

import os
import socket
import time

import pytest
from process_group import reserve_address

from caption_jax.runtime import coordinator_relay
from caption_jax.runtime.coordinator_relay import start_relay


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_bytes_are_passed_on_in_both_directions_also_to_a_service_that_starts_later():
    address = reserve_address()
    with connect(start_relay(address, timeout_seconds=20)) as client:
        client.sendall(b"request")
        time.sleep(0.3)
        with socket.create_server(("", int(address.rpartition(":")[2]))) as server:
            service, _ = server.accept()
            with service:
                assert service.recv(100) == b"request"
                service.sendall(b"reply")
                assert client.recv(100) == b"reply"
                client.shutdown(socket.SHUT_WR)
                assert service.recv(100) == b""  # JAX has closed its side


def test_the_connection_stays_open_when_the_service_has_ended():
    with socket.create_server(("localhost", 0)) as server:
        client = connect(start_relay(f"localhost:{server.getsockname()[1]}", timeout_seconds=20))
        server.accept()[0].close()
    with client:
        for _ in range(3):
            client.sendall(b"heartbeat")  # a reset by the service must not be passed on
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(100)


def test_a_service_that_does_not_start_is_left_to_the_timeout_of_jax():
    with connect(start_relay(reserve_address(), timeout_seconds=0.5)) as client:
        assert client.recv(100) == b""


def test_a_proxy_is_not_used_for_the_relay(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    exceptions, _ = coordinator_relay._EXCEPTION_VARIABLES
    monkeypatch.setenv(exceptions, "")
    start_relay("localhost:1", timeout_seconds=1)
    assert os.environ[exceptions] == "example.org,127.0.0.1"
