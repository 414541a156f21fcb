"""Faults of the disk in processes that a test starts: chosen system calls fail, wait, or kill the process.

    library = build_library(folder)
    faults = [Fault("write", "*/eval_val.json*", "ENOSPC")]
    launcher.start(workdir, **fault_environment(library, faults, log))
    assert read_faults(log)  # otherwise, nothing was tested

The library (`system_call_faults.c`) is compiled by the tests. `tests/faults/conftest.py` has a fixture for it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("system_call_faults.c")


@dataclass(frozen=True)
class Fault:
    """A fault of the calls of a process.

    Attributes:
        calls: names separated by commas: "open" (for writing), "write" (also by C libraries), "fsync", "truncate",
            "mkdir", "rename", "link", "unlink".
        path: pattern of `fnmatch` for absolute paths; `*` also matches slashes.
        action: name of an error, such as "ENOSPC" or "EIO"; "kill", which sends SIGKILL before the call; or
            "delay:50", which waits for 50 ms.
        after: number of calls that succeed first.
        times: number of calls with the fault; 0 for all further ones.
    """

    calls: str
    path: str
    action: str = "ENOSPC"
    after: int = 0
    times: int = 0

    def to_rule(self) -> str:
        """Returns the rule of the library."""
        action = f"errno:{getattr(errno, self.action)}" if self.action.startswith("E") else self.action
        return f"{self.calls}|{self.path}|{self.after}|{self.times}|{action}"


def build_library(folder: Path) -> Path:
    """Compiles the library into a folder. Skips the test where that is not possible."""
    if sys.platform != "linux":
        pytest.skip("system calls can be made to fail only on Linux")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler (cc, gcc or clang)")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "system_call_faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def fault_environment(library: Path, faults: Sequence[Fault], log: Path) -> dict[str, str]:
    """Returns variables that cause faults in a process, which appends a line to `log` for each."""
    return {
        "LD_PRELOAD": os.fspath(library),
        "SYSTEM_CALL_FAULTS": "\n".join(fault.to_rule() for fault in faults),
        "SYSTEM_CALL_FAULTS_LOG": os.fspath(log),
    }


def clock_environment(library: Path, offset_seconds: float, after_seconds: float = 0) -> dict[str, str]:
    """Returns variables that set the clock of a process forward or back, some seconds after its start."""
    return {
        "LD_PRELOAD": os.fspath(library),
        "CLOCK_OFFSET": str(offset_seconds),
        "CLOCK_OFFSET_AFTER": str(after_seconds),
    }


def read_faults(log: Path) -> list[tuple[str, str]]:
    """Returns the call and the path of each fault that has occurred."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]
