"""What ends a run before its last step."""

from __future__ import annotations

import signal

import pytest

from caption_jax.runtime.stopping import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_afterwards_all_is_as_before(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as asked:
        assert not asked(1)
        signal.raise_signal(number)
        assert asked(2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt; in what a script has started with `&` it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait():
    with stop_on_signal() as asked, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert asked(1)
        signal.raise_signal(signal.SIGINT)
