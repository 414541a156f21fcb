"""The config that users edit, with the defaults of all keys.

A config file is a Python file whose `get_config` modifies and returns `default_config()`. The ConfigDict is locked, so
a misspelled key raises an error that suggests similar keys, both in files and on the command line. Keys, defaults and
documentation are defined by the dataclasses in `caption_jax/specs/` and, for `config.data`, in
`input_pipeline/data_spec.py`. A run first converts its config to these.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.specs import RunSpec, as_mapping


def default_config() -> ConfigDict:
    """Returns a locked config with the default values of all keys."""
    return ConfigDict(as_mapping(RunSpec())).lock()


def config_of(spec: RunSpec) -> ConfigDict:
    """Returns the locked config of a spec, whose keys flags can override; the inverse of `RunSpec.from_config`."""
    return ConfigDict(as_mapping(spec)).lock()
