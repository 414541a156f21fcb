"""Evaluation of a run: generates captions for a split, scores them, tunes decoding settings and writes reports.

The metrics are in `caption_jax.metrics`. They were part of this package until version 0.2; the old names still work for
one release, with a warning.
"""

from __future__ import annotations

import warnings
from typing import Any

_RENAMED = {"cross_tuned": "cross_tune", "seeded_halves": "split_by_hash"}


def __getattr__(name: str) -> Any:
    import caption_jax.metrics

    new_name = _RENAMED.get(name, name)
    if name.startswith("_") or new_name not in caption_jax.metrics.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"caption_jax.evaluation.{name} is now caption_jax.metrics.{new_name}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(caption_jax.metrics, new_name)
