"""The config of an existing run, --config=configs/workdir.py:WORKDIR. It is the default in all modes except train."""

from caption_jax.cli.stored_config import get_config

__all__ = ["get_config"]
