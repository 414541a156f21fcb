"""The stored config of a run as a config file: `--config=configs/workdir.py:WORKDIR`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def get_config(workdir: str) -> ConfigDict:
    """Returns the stored config of the run in `workdir`."""
    from caption_jax.config import to_config_dict
    from caption_jax.runs.workdir import read_spec

    return to_config_dict(read_spec(workdir))
