"""The packages of the `serve` extra."""

from __future__ import annotations

from input_pipeline.extras import EXTRAS, require


def require_packages() -> None:
    """Raises MissingPackageError with the command to install them, if a package for serving is missing."""
    require("serving", *EXTRAS["serve"])
