"""Resident memory of a process (Linux)."""

from __future__ import annotations

import os
from pathlib import Path


def read_resident_mb(pid: int | str = "self") -> float:
    """Returns the resident memory of a process in MB, or 0 on systems without /proc."""
    file = Path(f"/proc/{pid}/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if file.exists() else 0.0
