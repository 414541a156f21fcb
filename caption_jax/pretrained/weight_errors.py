"""The error of this package, under its former name."""

from caption_jax.errors import WeightsError

__all__ = ["WeightsError"]
