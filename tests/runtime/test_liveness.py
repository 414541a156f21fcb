"""The end of one process of a run ends the others, with one line that names it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from process_group import reserve_address

from caption_jax.runtime import liveness
from caption_jax.runtime.liveness import PEER_FAILED, PEER_LOST, PeerWatch
from caption_jax.runtime.rendezvous import Meeting, meet

HOST = socket.gethostname()


class Member:
    """One process of a run, which the test plays with a thread."""

    def __init__(self, meeting: Meeting, heartbeat_seconds: float):
        self.meeting, self.ended = meeting, threading.Event()
        self.status: int | None = None
        self.watch = PeerWatch(meeting, heartbeat_seconds, self._end)

    def _end(self, status: int) -> None:
        self.status = status
        self.meeting.close()
        self.ended.set()

    def kill(self) -> None:
        """Does what the system does when a process is killed."""
        self.watch._has_left = True  # its thread is gone, too
        for connection in self.meeting.connections.values():
            with contextlib.suppress(OSError):  # the other side has closed it already
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def start_members(monkeypatch) -> Iterator[Callable[..., list[Member]]]:
    """A function that starts the members of a run, and returns them in order."""
    monkeypatch.setattr(liveness, "_FAILURE_SECONDS", 0.2)
    monkeypatch.setattr(liveness, "_SHARED_ERROR_SECONDS", 0.4)
    monkeypatch.setattr(liveness, "_CONSEQUENCE_SECONDS", 0.2)
    members: list[Member] = []

    def start(count: int, heartbeat_seconds: float = 30.0, silent: int = -1) -> list[Member]:
        address = reserve_address()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            members.extend(
                Member(meeting, heartbeat_seconds)
                for meeting in pool.map(lambda index: meet(address, index, count, 30), range(count))
            )
        for index, member in enumerate(members):
            if index != silent:
                member.watch.start()
        return members

    yield start
    for member in members:
        member.watch.leave()
        member.meeting.close()


def read_lines(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_the_others_at_once_with_one_line(start_members, capfd, killed):
    members = start_members(3)
    for member in members:
        member.watch.set_saved_step(lambda: 30)
    start = time.monotonic()
    members[killed].kill()
    others = [member for index, member in enumerate(members) if index != killed]
    assert all(member.ended.wait(10) for member in others)
    assert time.monotonic() - start < 5  # instead of the 30 s of the heartbeat
    assert [member.status for member in others] == [PEER_LOST] * 2
    remedy = "see its log; step 30 is saved: run the same command again to resume"
    expected = f"error: process {killed} ({HOST}) was killed or has crashed: {remedy}"
    assert [line for line in read_lines(capfd) if f"process {killed} " in line] == [expected] * 2


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_host_is_named_after_the_heartbeat(start_members, capfd, silent):
    members = start_members(2, heartbeat_seconds=1.0, silent=silent)
    other = members[1 - silent]
    start = time.monotonic()
    assert other.ended.wait(10)
    assert time.monotonic() - start >= 0.9
    assert other.status == PEER_LOST
    expected = f"error: process {silent} ({HOST}) has been silent for 1 s (--heartbeat): see its log and its host"
    assert read_lines(capfd) == [f"{expected}; run the same command again"]


def test_heartbeats_keep_the_processes_together_for_longer_than_the_limit(start_members):
    members = start_members(3, heartbeat_seconds=1.0)
    time.sleep(2.5)
    assert not any(member.ended.is_set() for member in members)


@pytest.mark.parametrize("failing", [0, 2])
def test_the_error_of_one_process_is_the_line_of_the_others(start_members, capfd, failing):
    members = start_members(3)
    members[failing].watch.report_failure("no space left on /data")
    members[failing].kill()
    others = [member for index, member in enumerate(members) if index != failing]
    assert all(member.ended.wait(10) for member in others)
    assert [member.status for member in others] == [PEER_FAILED] * 2
    assert read_lines(capfd) == [f"error: process {failing} ({HOST}) failed: no space left on /data"] * 2


def test_an_error_that_all_processes_raise_is_printed_by_each_of_them_alone(start_members, capfd):
    members = start_members(3)
    for member in members:
        member.watch.report_shared_failure("the configs differ")
    time.sleep(1)
    assert not any(member.ended.is_set() for member in members)  # each main thread prints the error and exits
    assert not read_lines(capfd)


def test_a_process_that_does_not_raise_the_shared_error_ends_with_it(start_members, capfd):
    members = start_members(2)
    members[1].watch.report_shared_failure("the configs differ")
    assert members[0].ended.wait(10)
    assert (members[0].status, read_lines(capfd)) == (PEER_FAILED, ["error: the configs differ"])


def test_an_error_that_follows_from_a_killed_process_is_not_blamed_on_the_process_that_raises_it(start_members, capfd):
    members = start_members(3)
    members[2].kill()
    report = functools.partial(members[1].watch.report_failure, may_be_consequence=True)
    threading.Thread(target=report, args=["Gloo: connection closed by peer"], daemon=True).start()  # never returns
    assert members[1].ended.wait(10)
    assert members[0].ended.wait(10)
    assert (
        f"error: process 2 ({HOST}) was killed or has crashed: see its log; run the same command again"
        in read_lines(capfd)
    )
    assert members[0].status == PEER_LOST


def test_an_error_raised_while_the_thread_ends_the_process_waits_for_its_line(start_members, capfd):
    first, second = start_members(2)
    first.watch.call_before_end(functools.partial(time.sleep, 0.5))
    second.kill()
    while not first.watch._is_ending:
        time.sleep(0.01)
    first.watch.report_failure("UNKNOWN: Gloo AllGather failed", may_be_consequence=True)
    assert first.status == PEER_LOST
    (line,) = read_lines(capfd)
    assert line.startswith(f"error: process 1 ({HOST}) was killed or has crashed")


def test_an_interrupted_process_is_named(start_members, capfd):
    members = start_members(2)
    members[1].watch.report_interruption("SIGTERM")
    assert members[0].ended.wait(10)
    expected = f"error: process 1 ({HOST}) was interrupted (SIGTERM); run the same command again"
    assert (members[0].status, read_lines(capfd)) == (PEER_LOST, [expected])


def test_processes_that_leave_together_end_by_themselves(start_members):
    members = start_members(2)
    for member in members:
        member.watch.leave()
    for member in members:
        member.kill()
    time.sleep(0.5)
    assert not any(member.ended.is_set() for member in members)
    assert all(member.watch.is_complete for member in members)


def test_a_message_of_another_program_is_named(start_members, capfd):
    members = start_members(2)
    members[1].meeting.connections[0].sendall(b"GET / HTTP/1.1\r\n")
    assert members[0].ended.wait(10)
    assert f"error: process 1 ({HOST}) sent a message that is not one of this program" in read_lines(capfd)[0]
