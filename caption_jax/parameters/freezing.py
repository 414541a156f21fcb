"""Frozen parameters and frozen norms in each phase of training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from caption_jax.parameters.paths import flatten
from caption_jax.parameters.rules import Rules, match_rules

PyTree = Any


def phases(params: PyTree, rules: Rules) -> list[tuple[int, frozenset[str]]]:
    """Returns the phases of gradual unfreezing in order, as `(first step, paths of frozen parameters)`.

    The first phase starts at step 0, and each `from_step` that unfreezes parameters starts another one.

    Raises:
        ConfigError: see `match_rules`.
    """
    flat = flatten(match_rules(params, rules))
    starts = sorted({0} | {rule.from_step for rule in flat.values() if rule.lr > 0})
    return [
        (start, frozenset(path for path, rule in flat.items() if rule.lr == 0 or rule.from_step > start))
        for start in starts
    ]


def trained_norms(params: PyTree, rules: Rules, steps: int) -> frozenset[str]:
    """Returns the paths of the norms whose scale or bias is trained in a run of `steps` updates.

    Raises:
        ConfigError: see `match_rules`.
    """
    *_, (_, frozen) = (phase for phase in phases(params, rules) if phase[0] < steps or phase[0] == 0)
    return frozen_norms(flatten(params)) - frozen_norms(frozen)


def frozen_norms(frozen: Collection[str]) -> frozenset[str]:
    """Returns the paths of the norms (modules with a `scale` and a `bias`) whose parameters are all frozen.

    A frozen batch norm should use its running statistics, because its scale and bias were trained with them.
    """
    modules = {path.rpartition("/")[0] for path in frozen if path.rpartition("/")[2] == "scale"}
    return frozenset(module for module in modules if f"{module}/bias" in frozen)
