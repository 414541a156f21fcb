"""The watchdog reports steps that take too long, and names what each thread is doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from caption_jax.runtime.watchdog import Watchdog


def wait_in_a_function_with_a_name(release: threading.Event) -> None:
    release.wait()


@pytest.fixture
def errors(monkeypatch) -> list[str]:
    """Messages that the watchdog logs."""
    messages: list[str] = []
    monkeypatch.setattr("absl.logging.error", lambda text, *values: messages.append(text % values))
    return messages


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def make_steps(watchdog: Watchdog, count: int = 6) -> None:
    for _ in range(count):
        time.sleep(0.01)
        watchdog.step()


def test_a_hanging_step_is_reported_with_the_stacks_of_all_threads(errors):
    release = threading.Event()
    thread = threading.Thread(target=wait_in_a_function_with_a_name, args=(release,), name="reader")
    thread.start()
    with Watchdog("log", factor=3, seconds=0.2) as watchdog:
        make_steps(watchdog)
        wait_until(lambda: errors)
        time.sleep(0.15)
        assert len(errors) == 1  # reported again only after twice the time
    release.set()
    thread.join()
    assert "no training step for 0 s" in errors[0]
    assert errors[0].index("thread MainThread") < errors[0].index("thread reader")
    assert "wait_in_a_function_with_a_name" in errors[0] and "wait_until" in errors[0]


def test_steps_in_time_and_pauses_are_not_reported(errors):
    with Watchdog("log", factor=3, seconds=0.3) as watchdog:
        make_steps(watchdog)
        with watchdog.paused():
            time.sleep(0.6)
        make_steps(watchdog)
    assert errors == []


def test_the_first_steps_have_time_to_compile(errors):
    with Watchdog("log", factor=3, seconds=0.05) as watchdog:
        time.sleep(0.3)
        make_steps(watchdog, 4)
        assert watchdog.limit == 3600
        make_steps(watchdog, 2)
        assert watchdog.limit < 1
    assert errors == []


def test_the_watchdog_can_be_disabled(errors):
    before = threading.active_count()
    with Watchdog("off", factor=1, seconds=0.01) as watchdog:
        make_steps(watchdog)
        assert threading.active_count() == before
        time.sleep(0.1)
    assert errors == []
