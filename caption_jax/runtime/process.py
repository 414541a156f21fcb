"""Process settings: environment variables that libraries read when they are imported, and a fast exit."""

from __future__ import annotations

import os
import sys

# On each run, XLA allocates the temporary buffers of a CPU program (hundreds of MB) with malloc and frees them again.
# glibc immediately returns that much memory to the system, so the next run causes a page fault per 4 KB. glibc 2.35 and
# later can use pages of 2 MB, but only this environment variable enables them.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# XLA's default of 256 bits leaves half of an AVX-512 unit idle. Processors with narrower vectors are not affected.
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"


def restart_with_huge_pages(script: str) -> None:
    """Replaces the process `python script ...` with the same command with huge pages enabled in malloc.

    Does nothing if GLIBC_TUNABLES is already set, if the system is not Linux, or if this process is not that command,
    because a notebook or a test that runs the script in its own process must not be replaced.

    Args:
        script: path of the calling file.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or not _is_command(script):
        return
    os.environ.update(HUGE_PAGES)
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def fast_exit(script: str, status: int) -> None:
    """Exits the process `python script ...` without interpreter shutdown, which takes a third of a second with JAX.

    Only for commands that have written all their output, since exit handlers do not run. Returns if this process is not
    that command.

    Args:
        script: path of the main script.
        status: exit status of the process.
    """
    if _is_command(script):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _is_command(script: str) -> bool:
    """Whether this process was started as `python script ...`."""
    for argument in sys.orig_argv[1:]:
        if os.path.realpath(argument) == os.path.realpath(script):
            return True
        if argument in ("-c", "-m"):
            return False
    return False


def set_up_process() -> None:
    """Makes XLA use vectors of 512 bits on CPUs unless XLA_FLAGS already sets the width. Call before importing JAX."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()
