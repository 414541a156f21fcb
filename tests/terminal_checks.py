"""Checks of what a user sees in a terminal while a command runs."""

from __future__ import annotations

import os

from terminal_recording import Recording

SECONDS_OF_SILENCE = 5.0
LINES_BEFORE_SCORES = 40


def check_output(recording: Recording) -> list[str]:
    """Checks the exit status, the silences and the number of lines before the scores; returns all lines."""
    lines = recording.screen()
    assert recording.status == 0, lines
    # On a busy machine, every process waits for its turn.
    processes_per_core = os.getloadavg()[0] / os.cpu_count()
    assert recording.longest_silence() <= SECONDS_OF_SILENCE * max(processes_per_core, 1), lines
    assert next(number for number, line in enumerate(lines) if "value  in papers" in line) <= LINES_BEFORE_SCORES, lines
    return lines
