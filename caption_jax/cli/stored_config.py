"""The stored config of a run as a config file: `--config=configs/workdir.py:WORKDIR`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def get_config_of_model(name: str) -> ConfigDict:
    """Returns the stored config of the run of a model, such as `runs/a` or `runs/a@1200`."""
    from caption_jax.runs.model_source import parse_source

    return get_config(parse_source(name, allow_all=True).folder)


def get_config(workdir: str) -> ConfigDict:
    """Returns the stored config of the run in `workdir`."""
    from caption_jax.config import to_config_dict
    from caption_jax.runs.workdir import read_spec

    return to_config_dict(read_spec(workdir))
