"""Judging a run's captions: decode a split, score it, compare settings, report.

The scores themselves, functions of strings, are in `caption_jax.metrics`. They were here until version 0.2: these names
still work, with a warning, for one release.
"""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    import caption_jax.metrics

    if name.startswith("_") or name not in caption_jax.metrics.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"caption_jax.evaluation.{name} is now caption_jax.metrics.{name}", DeprecationWarning, stacklevel=2)
    return getattr(caption_jax.metrics, name)
