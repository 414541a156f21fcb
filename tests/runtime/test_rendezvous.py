"""Processes meet at an address, and all of them learn which ones are missing or set up differently."""

from __future__ import annotations

import concurrent.futures
import socket
import time

import pytest
from process_group import reserve_address

from caption_jax.errors import ProcessesError
from caption_jax.runtime.rendezvous import meet

HOST = socket.gethostname()


@pytest.fixture
def address() -> str:
    return reserve_address()


def meet_all(address: str, members: list[tuple[int, int]], timeout_seconds: float = 1.0) -> list[str]:
    """Calls `meet` with each (index, count) in threads. Returns the messages of their errors, "" for no error."""

    def call(member: tuple[int, int]) -> str:
        try:
            meet(address, *member, timeout_seconds).close()
        except ProcessesError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(call, members))


def test_processes_meet_in_any_order_and_again_at_the_same_address(address):
    for members in ([(0, 4), (1, 4), (2, 4), (3, 4)], [(3, 4), (2, 4), (1, 4), (0, 4)], [(0, 1)]):
        assert meet_all(address, members, timeout_seconds=30) == [""] * len(members)


def test_all_processes_name_those_that_are_missing(address):
    (message, *others) = meet_all(address, [(0, 5), (1, 5), (3, 5)])
    assert message == (
        f"processes 2, 4 of 5 did not connect to process 0 ({HOST}) within 1 s: start the same command on all hosts, "
        "or use --distributed=off for a single process"
    )
    assert others == [message] * 2


def test_a_missing_coordinator_is_named_with_its_address(address):
    (message,) = meet_all(address, [(1, 2)])
    assert message.startswith(f"process 1 ({HOST}) of 2 could not connect to process 0 at {address} within 1 s (")
    assert "firewall" in message


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(0, 3), (1, 2)], f"process 1 ({HOST}) expects 2 processes, but process 0 ({HOST}) expects 3: set the same"),
        ([(0, 3), (1, 3), (1, 3)], f"{HOST} and {HOST} both have process 1: set another JAX_PROCESS_ID in each"),
    ],
)
def test_processes_that_are_set_up_differently_are_named(address, members, expected):
    messages = meet_all(address, members, timeout_seconds=10)
    assert messages[0].startswith(expected)
    assert messages[1] == messages[0]


def test_a_port_in_use_is_named(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (message,) = meet_all(address, [(0, 2)])
    assert message.startswith(f"process 0 cannot listen on port {address.rpartition(':')[2]} of {HOST} (")


def test_other_programs_at_the_address_are_not_taken_for_processes(address):
    port = int(address.rpartition(":")[2])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(meet_all, address, [(0, 2), (1, 2)], 10)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("localhost", port), timeout=1) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except OSError:
                if result.done():
                    break
        assert result.result() == ["", ""]
    with socket.create_server(("", port)) as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            result = pool.submit(meet_all, address, [(1, 2)])
            server.accept()[0].close()
        assert result.result()[0].startswith(f"process 0 at {address} ended, or another program listens there (")
