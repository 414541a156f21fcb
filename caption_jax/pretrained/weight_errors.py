"""The one error of this package."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and the key at fault, and what to do."""
