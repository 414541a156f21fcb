"""Stopping a run before its last step."""

from __future__ import annotations

import signal

import pytest

from caption_jax.runtime.stopping import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_requests_a_stop_and_handlers_are_restored(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        assert not stop(1)
        signal.raise_signal(number)
        assert stop(2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def interruptible():
    """Makes SIGINT raise KeyboardInterrupt; processes that a script starts with `&` ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_raises_immediately():
    with stop_on_signal() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert stop(1)
        signal.raise_signal(signal.SIGINT)
