"""The flags `--config=NAME` and `--config.KEY=VALUE`."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from caption_jax.errors import UnknownKeyError
from input_pipeline.data_spec import PART_KEYS, PartSpec

_HELP = "The config of the run."


def define_config(config: ConfigDict, argv: Sequence[str], values: flags.FlagValues) -> None:
    """Defines the flag `config` with a value, and a flag for each of its keys that `argv` sets.

    Raises:
        UnknownKeyError: a flag in `argv` sets a key that the config does not have; the message names similar keys.
    """
    _add_part_keys(config, argv)
    with _unknown_keys(config, argv):
        config_flags.DEFINE_config_dict("config", config, _HELP, flag_values=values, sys_argv=list(argv))


def _add_part_keys(config: ConfigDict, argv: Sequence[str]) -> None:
    """Adds the keys that `argv` sets to the parts of a mixture, which otherwise inherit them from `config.data`."""
    parts = config.get("data", ConfigDict()).get("mixture", ConfigDict())
    for argument in argv:
        name = argument.partition("=")[0]
        if not name.startswith("--config.data.mixture."):
            continue
        part, *path = name.removeprefix("--config.data.mixture.").split(".")
        if isinstance(parts.get(part), ConfigDict) and path and path[0] in (*PART_KEYS, "weight"):
            with parts[part].unlocked():
                _add_key(parts[part], ConfigDict({**config.data, "weight": PartSpec.weight}), path)


def _add_key(node: ConfigDict, defaults: ConfigDict, path: Sequence[str]) -> None:
    """Adds a key of any depth with its default, unless the config has it. Numbers get the type of the default."""
    key, *rest = path
    if key not in defaults:
        return
    default = defaults[key]
    if rest and isinstance(default, ConfigDict):
        node[key] = node.get(key, ConfigDict())
        _add_key(node[key], default, rest)
    elif key not in node:
        node[key] = default
    elif isinstance(default, float) and isinstance(node[key], int):
        value = float(node[key])
        del node[key]  # to change its type
        node[key] = value


@contextlib.contextmanager
def _unknown_keys(config: ConfigDict, argv: Sequence[str]) -> Iterator[None]:
    """Converts the errors of ml_collections for unknown keys, which do not name the flag."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        for argument in argv:
            if argument.startswith("--config.") and (message := explain_unknown_key(config, argument)):
                raise UnknownKeyError(message) from error
        raise UnknownKeyError(f"a --config.KEY flag cannot be applied: {error}") from error


def explain_unknown_key(config: ConfigDict, flag: str) -> str:
    """Returns an error message for a flag that sets an unknown key, or "" if the config has the key."""
    name = flag.partition("=")[0]
    node: Any = config
    section = "config"
    for part in name.removeprefix("--config.").split("."):
        if not isinstance(node, ConfigDict):
            return f"{name}: {section} has no keys, because its value is {node!r}"
        if part.partition("[")[0] not in node:
            return f"{name}: {section} has no key {part!r}{suggest_keys(config, part, list(node))}"
        node, section = node.get(part), f"{section}.{part}"
    return ""


def suggest_keys(config: ConfigDict, name: str, siblings: Sequence[str]) -> str:
    """Returns the end of an error message about an unknown key: similar keys, or the keys of the same section.

    Args:
        config: the whole config.
        name: the unknown key.
        siblings: keys of the section in which it was expected.
    """
    if similar := difflib.get_close_matches(name, siblings, n=1):
        return f'. Did you mean "{similar[0]}"?'
    if paths := find_keys(config, name):
        return f". Did you mean {' or '.join(paths)}?"
    return f". Its keys are {', '.join(siblings)}"


def find_keys(config: ConfigDict, name: str) -> list[str]:
    """Returns the flags of all keys, in any section, whose last part is `name`, or else is similar to it."""
    paths: dict[str, list[str]] = {}
    for path in _iterate_paths(config, "--config"):
        paths.setdefault(path.rpartition(".")[2], []).append(path)
    similar = [name] if name in paths else difflib.get_close_matches(name, paths, n=1, cutoff=0.75)
    return [path for key in similar for path in paths[key]]


def _iterate_paths(node: ConfigDict, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}.{key}"
        if isinstance(value, ConfigDict):
            yield from _iterate_paths(value, f"{prefix}.{key}")
