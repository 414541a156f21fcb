"""Syntax of parameter rules in a config, validated before the model is built."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import show


@dataclasses.dataclass(frozen=True, order=True)
class ParameterRule:
    """Settings of a rule in `config.optimizer.rules`. Rules are orderable, because JAX sorts the keys of dictionaries.

    Attributes:
        lr: multiplier of the learning rate; 0 freezes the parameter for the whole run.
        decay: multiplier of `weight_decay`. Biases, norm scales and other vectors are never decayed; see `is_decayed`.
        from_step: number of initial updates for which the parameter is frozen.
    """

    lr: float = 1.0
    decay: float = 1.0
    from_step: int = 0


def compile_pattern(pattern: str, key: str) -> re.Pattern:
    """Compiles the regular expression of a rule.

    Args:
        pattern: regular expression in the config.
        key: config key of the rules, for the error message.

    Raises:
        ConfigError: the pattern is not a valid regular expression.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(f"config.{key}: {show(pattern)} is not a valid regular expression ({error})") from error


def parse_parameter_rule(rule: tuple[str, Any]) -> tuple[str, ParameterRule]:
    """Parses a rule of `config.optimizer.rules` into its pattern and settings.

    Raises:
        ConfigError: the rule is not a pair of a regular expression and a dictionary, or a setting is unknown or out of
            range.
    """
    try:
        pattern, settings = rule
        settings = dict(settings.items())
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"config.optimizer.rules: {show(rule)} is not a (pattern, dictionary) pair") from error
    compile_pattern(pattern, "optimizer.rules")
    names = [field.name for field in dataclasses.fields(ParameterRule)]
    for name, value in settings.items():
        if name not in names:
            matches = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {matches[0]!r}?" if matches else f"; expected {', '.join(names)} (lr=0 freezes)"
            raise ConfigError(f"config.optimizer.rules: {show(pattern)} sets the unknown key {show(name)}{hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(
                f"config.optimizer.rules: {show(pattern)} sets {name} to {show(value)}; it must be a finite number, 0 "
                "or more"
            )
    if settings.get("from_step", 0) != int(settings.get("from_step", 0)):
        raise ConfigError(
            f"config.optimizer.rules: {show(pattern)} sets from_step to {show(settings['from_step'])}; it must be an "
            "integer"
        )
    return pattern, ParameterRule(**settings)


def check_partition_rule(rule: tuple[str, Any]) -> None:
    """Checks the syntax of a rule of `config.mesh.rules`. `parameter_shardings` checks its axes against the parameters.

    Raises:
        ConfigError: the rule is not a pair of a regular expression and a list of axis names.
    """
    try:
        pattern, axes = rule
    except (TypeError, ValueError):
        pattern, axes = None, None
    is_sequence = isinstance(axes, list | tuple)
    if pattern is None or not is_sequence or not all(name is None or isinstance(name, str) for name in axes):
        raise ConfigError(
            f"config.mesh.rules: {show(rule)} is not a (pattern, axes) pair with one mesh axis per dimension: "
            '"data", "model" or None'
        )
    compile_pattern(pattern, "mesh.rules")
