"""The log contains this project's messages, and of libraries only warnings and errors unless it is verbose."""

from __future__ import annotations

import logging as standard_logging
import os
import re
import signal
import subprocess
import sys
import threading
import types
import weakref

import pytest
from absl import flags, logging

from caption_jax.runtime.libraries import LogFormatter, set_up_log, without_cuda_driver_messages
from caption_jax.runtime.signals import SignalReceived, handled_signals


@pytest.fixture(autouse=True)
def restored_log(monkeypatch):
    """Restores the settings that `set_up_log` changes."""
    handler = logging.get_absl_handler()
    formatter, filters, verbosity = handler.python_handler.formatter, list(handler.filters), logging.get_verbosity()
    to_stderr = flags.FLAGS["logtostderr"].value
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    handler.setFormatter(formatter)
    handler.filters[:] = filters
    flags.FLAGS["logtostderr"].value = to_stderr
    logging.set_verbosity(verbosity)


def make_record(path: str, level: str, message: str = "") -> standard_logging.LogRecord:
    number = standard_logging.getLevelNamesMapping()[level]
    return standard_logging.makeLogRecord({"pathname": path, "levelno": number, "levelname": level, "msg": message})


@pytest.mark.parametrize(
    ("path", "level", "is_logged"),
    [
        ("/lib/site-packages/orbax/checkpoint/manager.py", "INFO", False),
        ("/lib/site-packages/orbax/checkpoint/manager.py", "WARNING", True),
        ("/lib/python3/dist-packages/clu/metric_writers/logging_writer.py", "INFO", False),
        ("/lib/site-packages/caption_jax/training/loop.py", "INFO", True),
        ("/home/me/jax/caption_jax/training/loop.py", "INFO", True),
        ("/home/me/jax/custom/loss.py", "INFO", True),
    ],
)
def test_the_log_contains_messages_from_this_project_and_warnings_from_libraries(path, level, is_logged):
    set_up_log()
    assert bool(logging.get_absl_handler().filter(make_record(path, level))) is is_logged


def test_the_warning_about_slow_saves_is_dropped():
    set_up_log()
    path, message = "/lib/site-packages/orbax/checkpoint/manager.py", "Waiting for previous save to complete took 1.5 s"
    assert not logging.get_absl_handler().filter(make_record(path, "WARNING", message))


def test_tracebacks_of_libraries_about_full_disks_are_dropped():
    set_up_log()
    record = make_record("/lib/site-packages/orbax/checkpoint/futures.py", "ERROR", "run() raised an exception")
    for error, is_logged in ((OSError(28, "No space left on device", "/a"), False), (ValueError("a bug"), True)):
        record.exc_info = (type(error), error, None)
        assert bool(logging.get_absl_handler().filter(record)) is is_logged


def test_exceptions_of_threads_after_a_failed_save_are_dropped_and_others_passed_on(monkeypatch):
    received, closed, bug = [], RuntimeError("Event loop is closed"), RuntimeError("a bug")
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: received.append(arguments.exc_value))
    set_up_log()
    set_up_log()
    for error in (closed, bug):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert received == [bug]


def test_a_signal_whose_exception_is_lost_is_raised_again_after_the_log_was_set_up(capfd):
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with handled_signals(), pytest.raises(SignalReceived):
        set_up_log()
        item = threading.Event()
        weakref.finalize(item, signal.raise_signal, signal.SIGTERM)
        del item
        threading.Event().wait(5)
    signal.signal(signal.SIGTERM, handler)
    assert "Traceback" not in capfd.readouterr().err


def test_a_verbose_log_contains_all_messages():
    set_up_log()
    set_up_log("verbose")
    assert logging.get_absl_handler().filter(make_record("/lib/site-packages/orbax/checkpoint/manager.py", "INFO"))


@pytest.mark.parametrize(("verbosity", "messages"), [("quiet", "cd"), ("normal", "bcd"), ("verbose", "abcd")])
def test_verbosity_selects_messages_by_level(verbosity, messages):
    set_up_log(verbosity)
    levels = {"a": "DEBUG", "b": "INFO", "c": "WARNING", "d": "ERROR"}
    is_enabled = logging.get_absl_logger().isEnabledFor
    assert [name for name, level in levels.items() if is_enabled(getattr(standard_logging, level))] == list(messages)


def test_messages_have_a_short_time_and_the_level_of_warnings():
    lines = [LogFormatter().format(make_record("loop.py", level, "step 5")) for level in ("INFO", "WARNING", "ERROR")]
    times = [re.match(r"\d\d:\d\d:\d\d ", line)[0] for line in lines]
    suffixes = [line.removeprefix(time) for line, time in zip(lines, times, strict=True)]
    assert suffixes == ["step 5", "warning: step 5", "error: step 5"]


CUDA_MESSAGES = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1795833796.033607    3254 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will "
    b"not be used.\n"
)


@pytest.mark.parametrize(("verbosity", "is_shown"), [("normal", False), ("verbose", True)])
def test_messages_about_a_missing_cuda_driver_are_dropped_unless_verbose(verbosity, is_shown, capfd):
    set_up_log(verbosity)
    with pytest.raises(RuntimeError), without_cuda_driver_messages():
        os.write(2, CUDA_MESSAGES + b"E0000 another message\n" + CUDA_MESSAGES)
        print("from Python", file=sys.stderr)
        raise RuntimeError
    output = capfd.readouterr().err
    assert ("cuda drivers" in output) is is_shown
    assert "E0000 another message\n" in output and "from Python\n" in output
    os.write(2, CUDA_MESSAGES)
    assert "cuda drivers" in capfd.readouterr().err


@pytest.mark.slow
def test_tensorflow_prints_nothing_when_it_starts():
    pytest.importorskip("tensorflow")
    script = "\n".join(
        [
            "from caption_jax.runtime.libraries import set_up_log",
            "set_up_log()",
            "import tensorflow as tf",
            "tf.config.set_visible_devices([], 'GPU')",
            "assert int(tf.constant(1) + 1) == 2",
        ]
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("", "")
