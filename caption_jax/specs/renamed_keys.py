"""Former names of config keys and modules, which work for one release.

Using one in a config issues a warning; reading a stored run that contains one does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Container
from typing import Any

# Former name -> current name, since version 0.2, in the section that contains the current name.
_KEYS = {
    "accumulation": "grad_accum_steps",  # optimizer
    "beams": "num_beams",  # decode
    "double_tokens": "immediate_repeats",  # decode
    "draws": "num_samples",  # decode
    "fit": "resize",  # data
    "shared_space": "joint_embedding",  # model
    "slots": "max_texts",  # model.context
}
_VALUES = {("resize", "squash"): "stretch"}

RENAMED_MODULES = {"shared_space": "joint_embedding"}  # in parameter paths


def current_key(key: Any, keys: Container[str]) -> Any:
    """Returns the current name of a key of a section.

    Args:
        key: current or former name; any other key is returned unchanged.
        keys: current names of all keys of the section.
    """
    renamed = _KEYS.get(key)
    if renamed is None or key in keys or renamed not in keys:
        return key
    _warn(f"config key {key!r}", renamed)
    return renamed


def current_value(key: str, value: Any) -> Any:
    """Returns the value of a key, with former names of choices and of modules in `rules` replaced with current ones."""
    if key == "rules" and isinstance(value, tuple | list):
        return type(value)(_current_rule(rule) for rule in value)
    renamed = _VALUES.get((key, value)) if isinstance(value, str) else None
    if renamed is None:
        return value
    _warn(f"config value {key}={value!r}", renamed)
    return renamed


def _current_rule(rule: Any) -> Any:
    if not (isinstance(rule, tuple | list) and rule and isinstance(rule[0], str)):
        return rule  # malformed; validation of the spec raises an error
    pattern = rule[0]
    for former, renamed in RENAMED_MODULES.items():
        if former in pattern:
            _warn(f"module {former!r} in the rule {pattern!r}", renamed)
            pattern = pattern.replace(former, renamed)
    return type(rule)((pattern, *rule[1:]))


def _warn(former: str, renamed: str) -> None:
    warnings.warn(f"{former} is now {renamed!r}; the former name will be removed in 0.3", FutureWarning, stacklevel=4)
