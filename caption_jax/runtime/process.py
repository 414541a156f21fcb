"""Settings of the process, made through the environment before the libraries that read them are imported."""

from __future__ import annotations

import os
import sys

# XLA takes a CPU program's temporary buffers, hundreds of megabytes, from malloc at each run and gives them back, and
# glibc returns as much to the system at once: a page fault for every 4 KB at the next run. Since 2.35 it can ask for
# pages of 2 MB; only the environment tells it to.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# XLA's default of 256 bits leaves half of an AVX-512 unit idle; processors with narrower ones use what they have.
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"


def restart_with_huge_pages(script: str) -> None:
    """Starts `python script ...` anew, with the same arguments, where malloc is to use huge pages from now on.

    Returns where that is so already, where GLIBC_TUNABLES says something else, on other systems than Linux, and where
    this process is not that command: a notebook or a test that runs the script within itself must not be replaced.

    Args:
        script: path of the file that calls this.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or not _is_command(script):
        return
    os.environ.update(HUGE_PAGES)
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def end_at_once(script: str, status: int) -> None:
    """Ends the process `python script ...` without taking it apart first, which takes JAX a third of a second.

    For commands that have written all they had to write. Returns where this process is not that command.
    """
    if _is_command(script):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _is_command(script: str) -> bool:
    for argument in sys.orig_argv[1:]:
        if os.path.realpath(argument) == os.path.realpath(script):
            return True
        if argument in ("-c", "-m"):
            return False
    return False


def set_up_process() -> None:
    """Programs for the CPU use vectors of 512 bits, unless the flag is set already. Call it before JAX is imported."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()
