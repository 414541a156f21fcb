"""Bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
import terminal_recording
from terminal_recording import Recording

from caption_jax.telemetry.progress_displays import LineDisplay, TerminalDisplay, open_display

PRELUDE = """
import sys, time
from absl import flags, logging
from caption_jax.runtime.libraries import set_up_log
from caption_jax.telemetry.progress_displays import open_display

flags.FLAGS(["script"])
set_up_log()
"""


def record_script(script: str, **options) -> Recording:
    """Runs a script that may use the names imported in `PRELUDE` in a pseudo-terminal."""
    recording = terminal_recording.record([sys.executable, "-c", PRELUDE + textwrap.dedent(script)], **options)
    assert recording.status == 0, b"".join(data for _, data in recording.chunks).decode()
    return recording


def find_screen(recording: Recording, pattern: str) -> list[str]:
    """Returns the first screen with a line that contains a regular expression."""
    matches = (screen for screen in recording.screens() if any(re.search(pattern, line) for line in screen))
    screen = next(matches, None)
    assert screen is not None, recording.screens()[-1]
    return [line for line in screen if line]


def test_bars_are_drawn_below_messages_and_erased_at_the_end():
    recording = record_script(
        """
        with open_display() as display, display.phase("features", 200, "images") as phase:
            time.sleep(1)
            phase.advance(50, "loss 2.5")
            logging.info("a message")
            with display.phase("compiling"):
                time.sleep(1)
            logging.warning("a very %s warning", "long " * 40)
            print("a result\\twith a tab")
            time.sleep(1)
        print("the end")
        """
    )
    screen = find_screen(recording, "compiling")
    assert re.fullmatch(r"\d\d:\d\d:\d\d a message", screen[0])
    assert re.fullmatch(r". features   +━{5}─{15} +50/200 images +0:0\d +loss 2\.5", screen[1])
    assert re.fullmatch(r". compiling +0:0\d", screen[2])
    assert len(screen) == 3
    message, *warning, result, end = recording.screen()
    assert "a message" in message and "warning: a very long long" in warning[0]
    assert " ".join(warning).count("long") == 40
    assert (result, end) == ("a result        with a tab", "the end")


def test_no_bar_is_drawn_in_a_short_phase():
    recording = record_script(
        """
        with open_display() as display, display.phase("loading"):
            print("a result")
        assert "rich" not in sys.modules
        """
    )
    assert b"".join(data for _, data in recording.chunks) == b"a result\r\n"


def test_lines_without_an_end_and_errors_are_not_lost():
    recording = record_script(
        """
        try:
            with open_display() as display, display.phase("features"):
                time.sleep(1)
                print("complete\\nincomplete", end="")
                sys.stderr.write(" line")
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print(", interrupted")
        assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
        """
    )
    assert recording.screen()[0] == "complete"
    assert sorted("".join(recording.screen()[1:])) == sorted("incomplete line, interrupted")


def test_results_in_a_pipe_are_not_mixed_with_bars():
    reader, writer = os.pipe()
    try:
        recording = record_script(
            """
            with open_display() as display, display.phase("captioning", 2, "images") as phase:
                for number in range(2):
                    time.sleep(1)
                    print(f"{number}.jpg\\ta dog", flush=True)
                    phase.advance()
            """,
            stdout=writer,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "0.jpg\ta dog\n1.jpg\ta dog\n"
    find_screen(recording, r"captioning +━+─+ +1/2 images")
    assert recording.screen() == []


@pytest.mark.parametrize("columns", [20, 200])
def test_bars_fit_the_width_of_the_terminal(columns):
    recording = record_script(
        """
        with open_display() as display, display.phase("a long description of a phase", 10, "images") as phase:
            phase.advance(1, "more text " * 5)
            time.sleep(1)
        """,
        size=(columns, 10),
    )
    tall = [screen for screen in recording.screens() if sum(map(bool, screen)) > 1]
    assert not tall
    find_screen(recording, "a long")


def test_the_spinner_moves_while_the_main_thread_is_busy():
    recording = record_script(
        """
        with open_display() as display, display.phase("compiling"):
            end = time.monotonic() + 4
            while time.monotonic() < end:
                sum(range(100_000))
        """
    )
    assert len({screen[0] for screen in recording.screens()}) >= 4


def test_lines_at_intervals_without_a_terminal(capsys):
    output = ""
    with LineDisplay(seconds=0.2) as display, display.phase("features", 10, "images") as phase:
        phase.advance(3)
        deadline = time.monotonic() + 60
        while output.count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            output += capsys.readouterr().err
    lines = output.splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d features: 3/10 images \(0:\d\d\)", line) for line in lines)


def test_nothing_is_printed_in_short_phases(capsys):
    with LineDisplay() as display, display.phase("features"):
        pass
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "kind"), [("xterm", TerminalDisplay), ("dumb", LineDisplay)])
def test_the_display_depends_on_the_terminal(monkeypatch, term, kind):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", term)
    with open_display() as display:
        assert type(display) is kind


def test_without_a_terminal_lines_are_optional():
    with open_display() as with_lines, open_display(lines=False) as without_lines:
        assert type(with_lines) is LineDisplay and type(without_lines).__name__ == "Display"


def test_a_closed_stream_ends_the_display_silently():
    script = (
        PRELUDE + "sys.stderr.close()\nwith LineDisplay(0.1) as display, display.phase('a'):\n    time.sleep(0.5)\n"
    )
    script = script.replace("import open_display", "import LineDisplay")
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
