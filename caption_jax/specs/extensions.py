"""Extensions: dataclasses that a config names by their import path, built and checked where the config is validated.

A backbone, an objective or an evaluator is a frozen dataclass in a file of its own. A config names it as

    {"name": "package.module:Class", "field": value, ...}

and whatever fields the class has are its keys: its `__post_init__` checks them. Nothing else lists them.

Captioning needs no objective and no evaluator: a stored run whose extensions cannot be loaded any more is read with an
`UnavailableExtension` for each of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from input_pipeline.errors import ConfigError

NAME = "name"
IfUnavailable = Literal["refuse", "keep"]


@dataclasses.dataclass(frozen=True)
class UnavailableExtension:
    """Stands in a spec for an extension that cannot be loaded, until something needs it.

    Attributes:
        key: config key that names it, "objective.terms.mine".
        values: what the config says there, its name included.
        reason: the error, in a line.
    """

    key: str
    values: Mapping[str, Any]
    reason: str

    def __str__(self) -> str:
        """The reason, after the key and the import path."""
        where = f"config.{self.key}.name={self.values.get(NAME, '')}"
        return self.reason if self.reason.startswith(where) else f"{where}: {self.reason}"


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
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"config.{key}.name={name}: {error}") from error
    found = getattr(imported, attribute, None)
    if found is None:
        raise ConfigError(f"config.{key}.name={name}: the module {module} has no {attribute!r}")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen):
        raise ConfigError(f"config.{key}.name={name} is not a frozen dataclass, as an extension has to be")
    return found


def build_extension(
    values: Mapping[str, Any],
    key: str,
    build: Callable[[type, Mapping[str, Any], str], Any],
    default: type | None = None,
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
    if not is_mapping(values):
        raise ConfigError(f'config.{key} is {values!r}; give it a dictionary: {{"name": "package.module:Class", ...}}')
    values = dict(values)
    name = values.pop(NAME, "")
    if not name and default is None:
        raise ConfigError(f'config.{key} has no name; give it one: {{"name": "package.module:Class", ...}}')
    return build(load_class(name, key) if name else default, values, key)


def build_if_available(
    values: Mapping[str, Any], key: str, build: Callable[[type, Mapping[str, Any], str], Any]
) -> Any | UnavailableExtension:
    """`build_extension` of one that has no default; an `UnavailableExtension` where that fails, for whatever reason."""
    try:
        return build_extension(values, key, build)
    except Exception as error:  # also of its module, which may raise any type when it is imported
        if not is_mapping(values):
            raise
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        return UnavailableExtension(key, dict(values), f"{kind}{error}".partition("\n")[0])


def import_path(cls: type) -> str:
    """What a config calls a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_mapping(value: Any) -> bool:
    """Whether a value has keys: a Mapping, or a ConfigDict, which is none."""
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "items"))


def near(name: str, known: list[str]) -> str:
    """A hint at the key that was meant."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; it has {', '.join(known)}"
