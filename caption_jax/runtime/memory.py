"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import gc


def return_freed_memory() -> None:
    """Returns the memory that this process has freed to the operating system.

    glibc keeps a heap per group of threads, and returns only its end, so a few small objects can hold hundreds of freed
    megabytes. Evaluations allocate in many threads; without this call, the resident memory of a long run grows with
    each of them although nothing is referenced any more. Other C libraries do not have the function `malloc_trim`,
    and then nothing happens.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
