"""Extensions: dataclasses specified in a config by import path, built when the config is validated.

A backbone, objective or evaluator is a frozen dataclass. A config specifies it as

    {"name": "package.module:Class", "field": value, ...}

The other keys are the fields of the class, validated by its `__post_init__`. There is no registry.

Captioning requires neither objectives nor evaluators, so it does not import their modules, which the config of a stored
run names. Its spec contains a `DeferredExtension` for each of them. Training and evaluation import them
(`RunSpec.import_extensions`). The backbone is always imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import show

NAME = "name"
_EXPECTED = 'a dictionary {"name": "package.module:Class", ...}'
Loading = Literal["import", "defer"]  # whether to import objectives and evaluators

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DeferredExtension:
    """Placeholder in a spec for an extension whose module is not imported.

    Attributes:
        key: config key of the extension, such as "objective.terms.my_term".
        values: its values in the config, including the name.
    """

    key: str
    values: Mapping[str, Any]


def extension_field(default: type) -> Any:
    """Returns a dataclass field for an extension. `default` is the class to use if the config does not specify one."""
    return dataclasses.field(default_factory=default, metadata={"extension": default})


def extensions_field() -> Any:
    """Returns a dataclass field for a dictionary of extensions by label, which is empty by default."""
    return dataclasses.field(default_factory=dict, metadata={"extensions": True})


def load_class(name: str, key: str) -> type:
    """Imports the dataclass at the import path "package.module:Class".

    Args:
        name: the import path.
        key: config key of the extension, for error messages.

    Raises:
        ConfigError: the module or class does not exist, or the class is not a frozen dataclass.
    """
    module, colon, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not colon or not module or not attribute:
        raise ConfigError(f'config.{key}.name is {show(name)}; it must be an import path, "package.module:Class"')
    is_ours = module.partition(".")[0] == __name__.partition(".")[0]
    if key == "model.encoder" and not is_ours and module not in sys.modules:  # the only one that captioning imports
        log.info("importing the module %s, which config.%s.name selects", module, key)
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"config.{key}.name={name}: {error}") from error
    except Exception as error:  # of the code in the module
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(f"config.{key}.name={name}: importing {module} raised {reason}") from error
    cls = getattr(imported, attribute, None)
    if cls is None:
        raise ConfigError(f"config.{key}.name={name}: module {module} has no attribute {show(attribute)}")
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):
        raise ConfigError(f"config.{key}.name={name} is not a frozen dataclass")
    return cls


def build_extension(
    values: Mapping[str, Any],
    key: str,
    build: Callable[[type, Mapping[str, Any], str], Any],
    default: type | None = None,
) -> Any:
    """Builds the extension specified by a section of a config.

    Args:
        values: the section: the name and fields of the extension.
        key: config key of the section, for error messages.
        build: builds a dataclass from a mapping.
        default: the class to use if `values` has no name.

    Raises:
        ConfigError: there is neither a name nor a default; see also `load_class`.
    """
    if not is_mapping(values):
        raise ConfigError(
            f'config.{key} is {show(values)}; expected a dictionary {{"name": "package.module:Class", ...}}'
        )
    values = dict(values)
    name = values.pop(NAME, "")
    if not name and default is None:
        raise ConfigError(f'config.{key} has no name; expected {{"name": "package.module:Class", ...}}')
    return build(load_class(name, key) if name else default, values, key)


def defer_extension(
    values: Mapping[str, Any], key: str, build: Callable[[type, Mapping[str, Any], str], Any]
) -> DeferredExtension:
    """Like `build_extension` without a default, but imports and builds nothing.

    Raises:
        ConfigError: `values` is not a mapping.
    """
    del build
    if not is_mapping(values):
        raise ConfigError(
            f'config.{key} is {show(values)}; expected a dictionary {{"name": "package.module:Class", ...}}'
        )
    return DeferredExtension(key, dict(values))


def import_path(cls: type) -> str:
    """Returns the import path of a class, "package.module:Class"."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_mapping(value: Any) -> bool:
    """Whether a value is a Mapping or a ConfigDict, which is not a subclass of Mapping."""
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "items"))


def suggest_key(name: str, valid_keys: list[str]) -> str:
    """Returns the ending of an error message about an unknown key: a similar key, or the list of valid keys."""
    matches = difflib.get_close_matches(name, valid_keys, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; valid keys are {', '.join(valid_keys)}"
