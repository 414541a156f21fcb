"""A small disk in memory, which tests can fill and free."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_FILLER = "filler"
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class SmallDisk:
    """A mounted disk.

    Attributes:
        folder: where it is mounted.
    """

    folder: Path

    def free_bytes(self) -> int:
        """Returns the free space."""
        return shutil.disk_usage(self.folder).free

    def fill(self, free_bytes: int = 0) -> None:
        """Fills the disk except for some space."""
        with (self.folder / _FILLER).open("ab") as file:
            missing = self.free_bytes() - free_bytes
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.tell(), missing // _BLOCK_BYTES * _BLOCK_BYTES)

    def free(self) -> None:
        """Frees the space that `fill` used."""
        (self.folder / _FILLER).unlink(missing_ok=True)

    def make_read_only(self, is_read_only: bool = True) -> None:
        """Mounts the disk read-only, or again for writing."""
        option = "ro" if is_read_only else "rw"
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)


@contextlib.contextmanager
def mount_small_disk(folder: Path, megabytes: float) -> Iterator[SmallDisk]:
    """Mounts a disk until the end of the `with` block. Skips the test where that is not possible."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk can be mounted only by root on Linux")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {result.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)
