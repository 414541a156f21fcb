"""Stopping a run before its last step."""

from __future__ import annotations

import signal

import pytest

from caption_jax.runtime.stopping import stop_on_signal


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_requests_a_stop_and_handlers_are_restored(signal_number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as should_stop:
        assert not should_stop(1)
        signal.raise_signal(signal_number)
        assert should_stop(2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def default_interrupt_handler():
    """Makes SIGINT raise KeyboardInterrupt, because background processes of a shell script ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupt_handler")
def test_a_second_interrupt_raises_immediately():
    with stop_on_signal() as should_stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert should_stop(1)
        signal.raise_signal(signal.SIGINT)
