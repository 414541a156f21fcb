"""Specs from mappings (a ConfigDict, or JSON) and back, by the fields and defaults of the dataclasses alone."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import NAME, build_extension, import_path, near
from input_pipeline.errors import ConfigError, UserError


def build_spec(cls: type, values: Mapping[str, Any], key: str = "") -> Any:
    """A spec from nested mappings; a key that is absent has its default.

    Args:
        cls: a dataclass of specs.
        values: by key; lists stand for tuples.
        key: path of these values in the config, for the errors.

    Raises:
        ConfigError: an unknown key, a value of another type than the default's, or what the spec's own checks raise.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            where = f"config.{key}" if key else "the config"
            raise ConfigError(f"{where} has no key {name!r}{near(name, list(fields))}")
    arguments = {name: _field_value(cls, fields[name], value, _join(key, name)) for name, value in values.items()}
    try:
        return cls(**arguments)
    except UserError:
        raise
    except ValueError as error:  # an extension's own check, which need not know our kinds of error
        raise ConfigError(f"config.{key}: {error}") from error


def as_mapping(spec: Any) -> dict[str, Any]:
    """The nested dictionaries that `build_spec` makes the spec of."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if "extension" in field.metadata:
            named = {} if type(value) is field.metadata["extension"] else {NAME: import_path(type(value))}
            result[field.name] = {**named, **as_mapping(value)}
        elif "extensions" in field.metadata:
            result[field.name] = {
                label: {NAME: import_path(type(item)), **as_mapping(item)} for label, item in value.items()
            }
        else:
            result[field.name] = as_mapping(value) if dataclasses.is_dataclass(value) else _plain(value)
    return result


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, _join(prefix, key)))
    return flat


def differences(ours: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as "a.b.c" -> (ours, other's); a key that one side lacks counts as None there."""
    first, second = flatten(as_mapping(ours)), flatten(as_mapping(other))
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def _field_value(cls: type, field: dataclasses.Field, value: Any, key: str) -> Any:
    if "extension" in field.metadata:
        return build_extension(value, key, build_spec, field.metadata["extension"])
    if "extensions" in field.metadata:
        return {label: build_extension(item, _join(key, label), build_spec, None) for label, item in value.items()}
    default = field.default if field.default is not dataclasses.MISSING else None
    if dataclasses.is_dataclass(default):
        return build_spec(type(default), value, key)
    wanted = type(default) if default is not None else typing.get_origin(typing.get_type_hints(cls)[field.name])
    value = _plain(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and type(value) is not wanted:
        raise ConfigError(f"config.{key} is {value!r}; it has to be of type {wanted.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Tuples for lists and dictionaries for mappings, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
