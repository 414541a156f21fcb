"""Memory in pages of 2 MB, so that a step's buffers do not cost a page fault for every 4 KB of them."""

from __future__ import annotations

import os
import sys

# XLA takes a CPU program's temporary buffers, hundreds of megabytes, from malloc at each run and gives them back, and
# glibc returns as much to the system at once. Since 2.35 it can ask for huge pages; only the environment tells it to.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_huge_pages() -> None:
    """Starts this Python program anew, with the same arguments, where malloc is to use huge pages from now on.

    Returns where that is so already, where GLIBC_TUNABLES says something else, and on other systems than Linux.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ.update(HUGE_PAGES)
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)
