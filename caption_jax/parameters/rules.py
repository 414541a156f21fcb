"""Rules of the optimizer: what `config.optimizer.rules` sets for each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caption_jax.parameters.paths import flatten, match_paths, unflatten
from caption_jax.specs.rule_syntax import ParameterRule, parse_parameter_rule

__all__ = ["ParameterRule", "Rules", "match_rules"]

PyTree = Any
Rules = Sequence[tuple[str, Any]]


def match_rules(params: PyTree, rules: Rules) -> PyTree:
    """Returns the tree of `params` with the `ParameterRule` of each parameter as its leaves.

    Args:
        params: nested dictionary of parameters (or of their shapes).
        rules: `config.optimizer.rules`, pairs of a regular expression and a dictionary with some of the keys "lr",
            "decay" and "from_step". An expression has to match the whole path ("decoder/embedding").

    Raises:
        ConfigError: a parameter that no rule or more than one matches, a rule that matches nothing or has an unknown
            key. The message names them, and near misses.
    """
    parsed = [parse_parameter_rule(rule) for rule in rules]
    matched = match_paths(flatten(params), [pattern for pattern, _ in parsed], "optimizer.rules", every=True)
    return unflatten({path: parsed[index][1] for path, index in matched.items()})
