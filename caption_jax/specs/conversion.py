"""Specs from mappings (a ConfigDict, or JSON) and back, by the fields and defaults of the dataclasses alone."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import (
    NAME,
    IfUnavailable,
    UnavailableExtension,
    build_extension,
    build_if_available,
    import_path,
    is_mapping,
    near,
)
from input_pipeline.errors import ConfigError, UserError


def build_spec(cls: type, values: Mapping[str, Any], key: str = "", if_unavailable: IfUnavailable = "refuse") -> Any:
    """A spec from nested mappings; a key that is absent has its default.

    Args:
        cls: a dataclass of specs.
        values: by key; lists stand for tuples.
        key: path of these values in the config, for the errors.
        if_unavailable: what becomes of an objective or an evaluator that cannot be loaded: "refuse" it, or "keep" an
            `UnavailableExtension` in its place.

    Raises:
        ConfigError: an unknown key, a value of another type than the default's, or what the spec's own checks raise.
    """
    where = f"config.{key}" if key else "the config"
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not is_mapping(values):
        raise ConfigError(f"{where} is {values!r}; it has to be a dictionary with keys of {', '.join(fields)}")
    for name in values:
        if name not in fields:
            raise ConfigError(f"{where} has no key {name!r}{near(name, list(fields))}")
    if missing := [name for name, field in fields.items() if _is_required(field) and name not in values]:
        raise ConfigError(f"{where} has to set {', '.join(missing)}, which {cls.__name__} has no default for")
    arguments = {
        name: _field_value(cls, fields[name], value, _join(key, name), if_unavailable) for name, value in values.items()
    }
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
                label: dict(item.values)
                if isinstance(item, UnavailableExtension)
                else {NAME: import_path(type(item)), **as_mapping(item)}
                for label, item in value.items()
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


def _is_required(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _field_value(cls: type, field: dataclasses.Field, value: Any, key: str, if_unavailable: IfUnavailable) -> Any:
    if "extension" in field.metadata:
        return build_extension(value, key, build_spec, field.metadata["extension"])
    if "extensions" in field.metadata:
        return _labelled_extensions(value, key, if_unavailable)
    default = field.default if field.default is not dataclasses.MISSING else None
    if dataclasses.is_dataclass(default):
        return build_spec(type(default), value, key, if_unavailable)
    wanted = type(default) if default is not None else typing.get_origin(typing.get_type_hints(cls)[field.name])
    value = _plain(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and type(value) is not wanted:
        raise ConfigError(f"config.{key} is {value!r}; it has to be of type {wanted.__name__}")
    return value


def _labelled_extensions(values: Mapping[str, Any], key: str, if_unavailable: IfUnavailable) -> dict[str, Any]:
    if not is_mapping(values):
        raise ConfigError(f"config.{key} is {values!r}; it has to be a dictionary of extensions by label")
    build = build_if_available if if_unavailable == "keep" else build_extension
    return {label: build(_plain(item), _join(key, label), build_spec) for label, item in values.items()}


def _plain(value: Any) -> Any:
    """Tuples for lists and dictionaries for mappings, all the way down."""
    if is_mapping(value):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
