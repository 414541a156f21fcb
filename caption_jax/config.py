"""The config that users edit, with defaults for all keys.

A config file is a Python file with a function `get_config` that modifies and returns `default_config()`. The ConfigDict
is locked, so a misspelled key raises an error that suggests similar keys, both in files and on the command line. Keys,
defaults and documentation are defined by the dataclasses in `caption_jax/specs/` and, for `config.data` and
`config.limits`, in `input_pipeline/data_spec.py` and `limits.py`. A run first converts its config to these dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from caption_jax.specs import RunSpec, as_mapping
from caption_jax.specs.renamed_keys import current_key, current_value


class Config(ConfigDict):
    """A ConfigDict that also accepts the former names of renamed keys, with a warning."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(current_key(key, self._fields))

    def __setitem__(self, key: str, value: Any) -> None:
        key = current_key(key, self._fields)
        if isinstance(value, ConfigDict) and not isinstance(value, Config):
            value = Config(value)  # the type of a ConfigDict field cannot change
        super().__setitem__(key, current_value(key, value))

    def get_type(self, key: str) -> type:
        """Returns the type of a key, which determines how its flag is parsed."""
        return super().get_type(current_key(key, self._fields))


def default_config() -> ConfigDict:
    """Returns a locked config with the default values of all keys."""
    return _to_config(as_mapping(RunSpec())).lock()


def to_config_dict(spec: RunSpec) -> ConfigDict:
    """Converts a spec to a locked config that flags can override; the inverse of `RunSpec.from_config`."""
    return _to_config(as_mapping(spec)).lock()


def _to_config(values: Mapping[str, Any]) -> Config:
    config = Config()
    for key, value in values.items():
        config[key] = _to_config(value) if isinstance(value, Mapping) else value
    return config
