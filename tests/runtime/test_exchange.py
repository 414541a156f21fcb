"""Process 0 judges the messages of all processes, and a process that stays silent is named."""

from __future__ import annotations

import itertools
import json
import threading

import jax
import pytest

from caption_jax.errors import DataError, ProcessesError
from caption_jax.runs.agreement import reported_failures
from caption_jax.runtime import exchange
from caption_jax.runtime.exchange import judge_together, report_failure


class Store:
    """The key-value store of `jax.distributed`, without waiting."""

    def __init__(self):
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        assert key not in self.values, "keys cannot be reused"
        self.values[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        if key not in self.values:
            raise RuntimeError(f"DEADLINE_EXCEEDED: after\n{timeout_in_ms} ms")
        return self.values[key]


@pytest.fixture
def act_as(monkeypatch):
    """A function with which the test acts as one of three processes, from the first message on."""
    store = Store()
    monkeypatch.setattr(exchange, "_get_client", lambda: store)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)

    def select(index: int) -> None:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(exchange, "_counter", itertools.count())
        monkeypatch.setattr(exchange, "_has_failed", threading.Event())

    return select


def test_process_0_judges_the_messages_of_all_processes_in_order(act_as):
    for index in (2, 1):
        act_as(index)
        with pytest.raises(ProcessesError):  # there is no verdict yet
            judge_together("the topic", f"message {index}", json.dumps)
    act_as(0)
    verdict = json.dumps(["message 0", "message 1", "message 2"])
    assert judge_together("the topic", "message 0", json.dumps) == verdict


def test_a_process_that_stays_silent_is_named_in_one_line(act_as):
    act_as(0)
    with pytest.raises(ProcessesError) as error:
        judge_together("that it is ready", "message", json.dumps, timeout_seconds=5)
    assert str(error.value) == (
        "process 1 of 3 did not report that it is ready within 5 s (DEADLINE_EXCEEDED: after 5000 ms): see its log, "
        "and start the same command on all hosts again"
    )


def test_the_failure_of_process_0_ends_the_others(act_as):
    act_as(0)
    report_failure("no such folder: /data")
    act_as(2)
    with pytest.raises(ProcessesError, match=r"process 0 \(.+\) failed: no such folder: /data$"):
        judge_together("the topic", "message", json.dumps)


def test_the_failures_of_other_processes_end_all(act_as):
    for index in (1, 2):
        act_as(index)
        report_failure(f"no such folder: /data/{index}")
    expected = r"process 1 \(.+\) failed: no such folder: /data/1 \(and 1 more\)$"
    act_as(0)
    with pytest.raises(ProcessesError, match=expected):
        judge_together("the topic", "message", lambda messages: pytest.fail("there is nothing to judge"))


def test_a_process_reports_only_its_first_failure(act_as):
    act_as(1)
    report_failure("first")
    report_failure("second, because of the first")
    act_as(2)
    report_failure("third")
    act_as(0)
    with pytest.raises(ProcessesError, match=r"process 1 \(.+\) failed: first"):
        judge_together("the topic", "message", json.dumps)


def test_an_error_before_the_first_agreement_is_reported_unless_all_processes_raise_it(act_as):
    act_as(1)
    with pytest.raises(ProcessesError, match="differ"), reported_failures():
        raise ProcessesError("the configs differ")
    with pytest.raises(DataError), reported_failures():
        raise DataError("no caption file in /holiday")
    act_as(2)
    report_failure("another reason")
    act_as(0)
    with pytest.raises(ProcessesError, match=r"process 1 \(.+\) failed: no caption file in /holiday"):
        judge_together("the topic", "message", json.dumps)


def test_a_single_process_has_nobody_to_report_to():
    with pytest.raises(DataError), reported_failures():
        raise DataError("no caption file in /holiday")


def test_processes_that_are_not_connected_are_an_error(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ProcessesError, match="4 processes share the devices, but they are not connected: use"):
        judge_together("the topic", "message", json.dumps)
