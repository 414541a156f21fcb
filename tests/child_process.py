"""Runs Python code in a child process, and measures its time and its peak of resident memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a child process.

    Attributes:
        status: exit status.
        out: standard output.
        err: standard error.
        seconds: wall time, including the start of Python.
        peak_mb: peak of resident memory, in megabytes.
    """

    status: int
    out: str
    err: str
    seconds: float
    peak_mb: float


# Linux counts the memory of the parent until `exec`, so the child asks for its own peak.
_MEASURED = """
import atexit, re, sys
def report():
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
    print(f"\\npeak {peak[1]} KB", file=sys.stderr)
atexit.register(report)
"""


def run_python(code: str, *arguments: str | Path, timeout: float = 60) -> Outcome:
    """Runs code with arguments in `sys.argv[1:]`. A child that exceeds the timeout is killed, and the test fails."""
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", _MEASURED + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    err, _, peak = result.stderr.rpartition("\npeak ")
    return Outcome(result.returncode, result.stdout, err, time.monotonic() - start, int(peak.split()[0]) / 1024)
