"""The progress line on a terminal."""

from __future__ import annotations

from absl import logging
from terminal_stream import Terminal

from caption_jax.telemetry.clock import Clock
from caption_jax.telemetry.progress import ProgressLine, describe_progress


def test_progress_shows_speed_waiting_time_and_eta():
    times = iter([0.0, 0.0, 0.0, 3.0, 8.0])
    clock = Clock(3750, images_per_step=32, now=lambda: next(times))
    assert describe_progress(0, 3750, 8.0, clock) == "step 0/3750 (0%)  loss 8.0000"
    with clock.waiting():
        pass
    clock.tick(100)
    line = describe_progress(100, 3750, 2.34567, clock)
    assert line == "step 100/3750 (2%)  loss 2.3457  400 images/s  input wait 38%  ETA 4:52"


def test_the_progress_line_is_below_log_lines():
    terminal = Terminal()
    handler = logging.get_absl_handler()
    line = ProgressLine(terminal)
    line.draw("step 1/3")
    line.draw("step 2/3")
    assert terminal.visible_lines() == ["step 2/3"]
    assert handler.filter(logging.logging.makeLogRecord({"msg": "saved", "levelno": 20, "pathname": "here.py"}))
    terminal.write("saved\n")
    line.draw("step 3/3")
    line.close()
    assert terminal.visible_lines() == ["saved", "step 3/3", ""]
    assert line not in handler.filters


def test_the_progress_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    ProgressLine(terminal).draw("x" * 100)
    assert len(terminal.visible_lines()[0]) < 40
