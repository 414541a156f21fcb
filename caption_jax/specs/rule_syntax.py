"""The form of rules in a config, pairs of a pattern for parameters and what it sets: checked before there are any."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

from input_pipeline.errors import ConfigError


@dataclasses.dataclass(frozen=True, order=True)
class ParameterRule:
    """What a rule of `config.optimizer.rules` sets for the parameters it matches; ordered, to be a key of a pytree.

    Attributes:
        lr: multiple of the learning rate; 0 freezes for the whole run.
        decay: multiple of `weight_decay`. Biases, norm scales and other vectors are never decayed, see `is_decayed`.
        from_step: the parameter is frozen until this many updates have been made.
    """

    lr: float = 1.0
    decay: float = 1.0
    from_step: int = 0


def compile_pattern(pattern: str, key: str) -> re.Pattern:
    """The regular expression of a rule.

    Args:
        pattern: as the config has it.
        key: config key of the rules, for the error.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"config.{key}: {pattern!r} is not a regular expression ({error})") from error


def parse_parameter_rule(rule: tuple[str, Any]) -> tuple[str, ParameterRule]:
    """The pattern of a rule of `config.optimizer.rules`, and what it sets.

    Raises:
        ConfigError: it is no pair of a regular expression and a dictionary, or a setting is unknown or out of range.
    """
    try:
        pattern, settings = rule
        settings = dict(settings.items())
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"config.optimizer.rules: {rule!r} is not a pair of a pattern and a dictionary") from error
    compile_pattern(pattern, "optimizer.rules")
    known = [field.name for field in dataclasses.fields(ParameterRule)]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)} (lr 0 freezes)"
            raise ConfigError(f"config.optimizer.rules: {pattern!r} sets {name!r}{hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"config.optimizer.rules: {pattern!r} sets {name} to {value!r}; it has to be 0 or more")
    if settings.get("from_step", 0) != int(settings.get("from_step", 0)):
        raise ConfigError(
            f"config.optimizer.rules: {pattern!r} sets from_step to {settings['from_step']}, no whole number"
        )
    return pattern, ParameterRule(**settings)


def check_partition_rule(rule: tuple[str, Any]) -> None:
    """Checks the form of a rule of `config.mesh.rules`; whether its axes fit a parameter, `parameter_shardings` does.

    Raises:
        ConfigError: it is no pair of a regular expression and a list of axis names.
    """
    try:
        pattern, axes = rule
    except (TypeError, ValueError):
        pattern, axes = None, None
    names = axes if isinstance(axes, list | tuple) else ()
    if pattern is None or names is not axes or not all(name is None or isinstance(name, str) for name in names):
        raise ConfigError(
            f"config.mesh.rules: {rule!r} is not a pair of a pattern and a list of axes of the mesh, one per dimension "
            'of the parameter: "data", "model" or None'
        )
    compile_pattern(pattern, "mesh.rules")
