"""Settings of a process that computes on a CPU, to be made before JAX starts its backend."""

from __future__ import annotations

import os

# XLA's default of 256 bits leaves half of an AVX-512 unit idle; processors with narrower ones use what they have.
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"


def set_up_processor() -> None:
    """Makes programs for the CPU use vectors of 512 bits, unless XLA_FLAGS already says how wide they are to be."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()
