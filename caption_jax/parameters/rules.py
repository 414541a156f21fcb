"""Per-parameter optimizer settings from `config.optimizer.rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caption_jax.parameters.paths import flatten, match_paths, unflatten
from caption_jax.specs.rule_syntax import ParameterRule, parse_parameter_rule

__all__ = ["ParameterRule", "Rules", "match_rules"]

PyTree = Any
Rules = Sequence[tuple[str, Any]]


def match_rules(params: PyTree, rules: Rules) -> PyTree:
    """Returns a tree with the structure of `params` and the `ParameterRule` of each parameter as leaves.

    Args:
        params: nested dictionary of parameters or their shapes.
        rules: `config.optimizer.rules`, pairs of a regular expression and a dictionary with any of the keys "lr",
            "decay" and "from_step". The regular expression must match the whole path ("decoder/embedding").

    Raises:
        ConfigError: a parameter matches no rule or several rules, or a rule matches nothing or has an unknown key. The
            message lists them with close matches.
    """
    parsed = [parse_parameter_rule(rule) for rule in rules]
    indices = match_paths(flatten(params), [pattern for pattern, _ in parsed], "optimizer.rules", require_all=True)
    return unflatten({path: parsed[index][1] for path, index in indices.items()})
