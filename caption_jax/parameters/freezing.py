"""Which parameters are frozen at which step, and what follows for the norms among them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from caption_jax.parameters.paths import flatten
from caption_jax.parameters.rules import Rules, match_rules

PyTree = Any


def phases(params: PyTree, rules: Rules) -> list[tuple[int, frozenset[str]]]:
    """Returns the stages of unfreezing: `(first step, paths of the parameters frozen from then on)`, in order.

    The first stage begins at step 0. There is one more for each `from_step` among the rules that unfreezes anything.

    Raises:
        ConfigError: as `match_rules`.
    """
    flat = flatten(match_rules(params, rules))
    starts = sorted({0} | {rule.from_step for rule in flat.values() if rule.lr > 0})
    return [
        (start, frozenset(path for path, rule in flat.items() if rule.lr == 0 or rule.from_step > start))
        for start in starts
    ]


def trained_norms(params: PyTree, rules: Rules, steps: int) -> frozenset[str]:
    """Returns the paths of the norms whose parameters are not all frozen for the whole of a run of `steps` updates.

    Raises:
        ConfigError: as `match_rules`.
    """
    *_, (_, frozen) = (phase for phase in phases(params, rules) if phase[0] < steps or phase[0] == 0)
    return frozen_norms(flatten(params)) - frozen_norms(frozen)


def frozen_norms(frozen: Collection[str]) -> frozenset[str]:
    """Returns the paths of the norms (modules with a `scale` and a `bias`) whose parameters are all frozen.

    Such a batch norm should run on its stored statistics: fresh ones would change what its fixed scale was learnt for.
    """
    modules = {path.rpartition("/")[0] for path in frozen if path.rpartition("/")[2] == "scale"}
    return frozenset(module for module in modules if f"{module}/bias" in frozen)
