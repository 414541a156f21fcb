"""Conversion of specs from and to mappings (ConfigDict or JSON), driven by the fields of the dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import (
    NAME,
    DeferredExtension,
    Loading,
    build_extension,
    defer_extension,
    import_path,
    is_mapping,
    suggest_key,
)
from caption_jax.specs.renamed_keys import current_key, current_value
from input_pipeline.errors import ConfigError, UserError
from input_pipeline.spec_checks import show

_MAX_INTEGER = 2**1000  # larger integers cannot be converted to float


def build_spec(cls: type, values: Mapping[str, Any], key: str = "", loading: Loading = "import") -> Any:
    """Builds a spec from nested mappings; missing keys keep their defaults.

    Args:
        cls: the spec dataclass.
        values: values by key; lists are converted to tuples.
        key: config path of `values`, for error messages.
        loading: whether to "import" the modules of objectives and evaluators, or "defer" it (`DeferredExtension`).

    Raises:
        ConfigError: a key is unknown or missing, a value has a different type from the default, or validation fails.
    """
    path = f"config.{key}" if key else "the config"
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not is_mapping(values):
        raise ConfigError(f"{path} is {show(values)}; it must be a dictionary with the keys {', '.join(fields)}")
    values = {current_key(name, fields): value for name, value in values.items()}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{path} has no key {show(name)}{suggest_key(name, list(fields))}")
    if missing := [name for name, field in fields.items() if _is_required(field) and name not in values]:
        raise ConfigError(f"{path} must set {', '.join(missing)}, because {cls.__name__} has no default for it")
    arguments = {
        name: _convert_value(cls, fields[name], current_value(name, value), _join_keys(key, name), loading)
        for name, value in values.items()
    }
    try:
        return cls(**arguments)
    except UserError:
        raise
    except ValueError as error:  # validation of an extension, which need not use our error classes
        raise ConfigError(f"config.{key}: {error}") from error


def as_mapping(spec: Any) -> dict[str, Any]:
    """Converts a spec to nested dictionaries; the inverse of `build_spec`."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if "extension" in field.metadata:
            name = {} if type(value) is field.metadata["extension"] else {NAME: import_path(type(value))}
            result[field.name] = {**name, **as_mapping(value)}
        elif "extensions" in field.metadata:
            result[field.name] = {
                label: dict(item.values)
                if isinstance(item, DeferredExtension)
                else {NAME: import_path(type(item)), **as_mapping(item)}
                for label, item in value.items()
            }
        else:
            result[field.name] = as_mapping(value) if dataclasses.is_dataclass(value) else _to_builtin_types(value)
    return result


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings into one dictionary with dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, _join_keys(prefix, key)))
    return flat


def as_lines(spec: Any) -> list[str]:
    """Returns a line `config.KEY = VALUE` per key, in the order of the fields, with the values as JSON."""
    return [f"config.{key} = {json.dumps(value)}" for key, value in flatten(as_mapping(spec)).items()]


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the keys with different values in two specs, as "a.b.c" -> (old value, new value).

    Missing keys have the value None.
    """
    old_values, new_values = flatten(as_mapping(old)), flatten(as_mapping(new))
    return {
        key: (old_values.get(key), new_values.get(key))
        for key in sorted(old_values.keys() | new_values.keys())
        if old_values.get(key) != new_values.get(key)
    }


def _is_required(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert_value(cls: type, field: dataclasses.Field, value: Any, key: str, loading: Loading) -> Any:
    if "extension" in field.metadata:
        return build_extension(value, key, build_spec, field.metadata["extension"])
    if "extensions" in field.metadata:
        return _build_extensions(value, key, loading)
    default = field.default if field.default is not dataclasses.MISSING else None
    if dataclasses.is_dataclass(default):
        return build_spec(type(default), value, key, loading)
    expected = type(default) if default is not None else typing.get_origin(typing.get_type_hints(cls)[field.name])
    value = _to_builtin_types(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _MAX_INTEGER else math.copysign(math.inf, value)
    if isinstance(expected, type) and type(value) is not expected:
        raise ConfigError(f"config.{key} is {show(value)}; it must be of type {expected.__name__}")
    return value


def _build_extensions(values: Mapping[str, Any], key: str, loading: Loading) -> dict[str, Any]:
    if not is_mapping(values):
        raise ConfigError(f"config.{key} is {show(values)}; it must be a dictionary of extensions by label")
    build = defer_extension if loading == "defer" else build_extension
    return {label: build(_to_builtin_types(item), _join_keys(key, label), build_spec) for label, item in values.items()}


def _to_builtin_types(value: Any) -> Any:
    """Recursively converts lists to tuples and mappings to dictionaries."""
    if is_mapping(value):
        return {key: _to_builtin_types(item) for key, item in value.items()}
    return tuple(_to_builtin_types(item) for item in value) if isinstance(value, list | tuple) else value


def _join_keys(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
