"""The config that users edit: every key a run can set, with its default.

A config file is plain Python: it starts from `default_config()`, sets what differs, and returns it. The dictionary is
locked, so a misspelt key raises an error that names the near ones, in a file as on the command line. The keys, their
defaults and their meanings are those of the dataclasses in `caption_jax/specs/` (`config.data`: input_pipeline/
data_spec.py), which a run turns the config into before anything else.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from caption_jax.specs import RunSpec, as_mapping


def default_config() -> ConfigDict:
    """A new, locked config with every key at its default."""
    return ConfigDict(as_mapping(RunSpec())).lock()


def config_of(spec: RunSpec) -> ConfigDict:
    """The locked config that `RunSpec.from_config` makes the spec of, for flags that override some of its keys."""
    return ConfigDict(as_mapping(spec)).lock()
