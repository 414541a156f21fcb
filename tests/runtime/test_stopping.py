"""Requests to stop a run, and signals before and after there is a state to save."""

from __future__ import annotations

import _imp
import gc
import signal
import threading
import time
import weakref
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location

import pytest

from caption_jax.runtime.signals import SIGNALS, SignalReceived, handled_signals
from caption_jax.runtime.stopping import stop_on_signal


@pytest.fixture(autouse=True)
def default_handlers():
    """Restores the default handlers, because the background processes of a shell script ignore SIGINT."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def list_handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop_and_handlers_are_restored(number):
    before = list_handlers()
    with stop_on_signal() as stop_requested:
        assert not stop_requested(1)
        signal.raise_signal(number)
        signal.raise_signal(number)  # at the same time, so it is the same request
        assert stop_requested(2) and stop_requested(2)
    assert list_handlers() == before


def test_several_processes_handle_signals_again_after_they_have_agreed_to_stop(monkeypatch):
    """jax.distributed receives SIGTERM until then, and would ignore further ones."""
    answers = iter([False, True])
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", lambda call: next(answers))
    ended = []
    monkeypatch.setattr("caption_jax.runtime.signals._end_process", lambda *arguments: ended.append(arguments))
    monkeypatch.setattr("caption_jax.runtime.signals.REPEAT_SECONDS", 0.0)
    with stop_on_signal() as stop_requested:
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("handled by jax.distributed"))
        assert not stop_requested(1) and stop_requested(2)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert not ended
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended == [(signal.SIGTERM, 143, "second signal, ended at once")]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_is_raised(number):
    with pytest.raises(SignalReceived, match=number.name), stop_on_signal():
        signal.raise_signal(number)
        pytest.fail("the signal was ignored")


def test_a_signal_after_the_last_step_is_raised():
    with pytest.raises(SignalReceived), stop_on_signal() as stop_requested:
        assert not stop_requested(1)
        signal.raise_signal(signal.SIGTERM)


def test_an_error_is_not_replaced_by_a_signal():
    with pytest.raises(ValueError), stop_on_signal() as stop_requested:
        stop_requested(1)
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("a bug")


def test_ignored_signals_remain_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stop_requested:
        signal.raise_signal(signal.SIGHUP)
        assert not stop_requested(1)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_nested_blocks_share_the_handlers_of_the_command():
    with handled_signals() as signals:
        with stop_on_signal() as stop_requested:
            stop_requested(1)
            signal.raise_signal(signal.SIGTERM)
            assert stop_requested(2)
        assert signals.received == signal.SIGTERM and not signals.raised
        assert signals.get_status(signal.SIGTERM) == 143


def test_a_signal_whose_exception_is_lost_in_a_finalizer_is_raised_again(capfd):
    class Cyclic:
        pass

    with handled_signals():
        garbage = Cyclic()
        garbage.itself = garbage
        weakref.finalize(garbage, signal.raise_signal, signal.SIGTERM)
        del garbage
        with pytest.raises(SignalReceived):
            gc.collect()
            threading.Event().wait(5)
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_is_not_raised_until_an_extension_module_is_initialised(monkeypatch, tmp_path):
    """The module calls Python code, such as imports, and would crash if it failed."""
    events = []

    def initialise(spec: ModuleSpec, *_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        events.append(spec.name)

    monkeypatch.setattr(_imp, "create_dynamic", initialise)
    spec = spec_from_file_location("extension", tmp_path / f"extension{EXTENSION_SUFFIXES[0]}")
    with handled_signals() as signals, pytest.raises(SignalReceived, match="SIGTERM"):
        spec.loader.create_module(spec)
        assert not signals.raised
        threading.Event().wait(5)
        pytest.fail("the signal was lost")
    assert events == ["extension"]


def test_runs_in_other_threads_are_not_stopped():
    def train() -> None:
        with stop_on_signal() as stop_requested:
            results.append(stop_requested(1))

    before, results = list_handlers(), []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert results == [False] and list_handlers() == before
