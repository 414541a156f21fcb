"""The config of a run that was trained before: --config=configs/workdir.py:WORKDIR (what evaluate and caption use)."""

from caption_jax.cli.stored_config import get_config

__all__ = ["get_config"]
