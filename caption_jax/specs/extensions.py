"""Extensions: dataclasses that a config names by their import path, built and checked where the config is validated.

A backbone, an objective or an evaluator is a frozen dataclass in a file of its own. A config names it as

    {"name": "package.module:Class", "field": value, ...}

and whatever fields the class has are its keys: its `__post_init__` checks them. Nothing else lists them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from input_pipeline.errors import ConfigError

NAME = "name"


def extension(default: type) -> Any:
    """A dataclass field that holds one extension; `default` is the class where the config names none."""
    return dataclasses.field(default_factory=default, metadata={"extension": default})


def extensions() -> Any:
    """A dataclass field that holds any number of extensions by label, none to begin with."""
    return dataclasses.field(default_factory=dict, metadata={"extensions": True})


def load_class(name: str, key: str) -> type:
    """The dataclass at the import path "package.module:Class".

    Args:
        name: the path.
        key: config key that names it, for the errors.

    Raises:
        ConfigError: there is no such module or class, or it is no frozen dataclass.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f'config.{key}.name is {name!r}; it has to be an import path, "package.module:Class"')
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"config.{key}.name={name}: {error}") from error
    except AttributeError:
        raise ConfigError(f"config.{key}.name={name}: the module {module} has no {attribute!r}") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen):
        raise ConfigError(f"config.{key}.name={name} is not a frozen dataclass, as an extension has to be")
    return found


def build_extension(
    values: Mapping[str, Any], key: str, build: Callable[[type, Mapping[str, Any], str], Any], default: type | None
) -> Any:
    """The extension that a part of a config names.

    Args:
        values: that part: its name and its fields.
        key: config key of the part, for the errors.
        build: makes a dataclass of a mapping.
        default: class where there is no name.

    Raises:
        ConfigError: no name and no default; see `load_class`.
    """
    values = dict(values)
    name = values.pop(NAME, "")
    if not name and default is None:
        raise ConfigError(f'config.{key} has no name; give it one: {{"name": "package.module:Class", ...}}')
    return build(load_class(name, key) if name else default, values, key)


def import_path(cls: type) -> str:
    """What a config calls a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def near(name: str, known: list[str]) -> str:
    """A hint at the key that was meant."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; it has {', '.join(known)}"
