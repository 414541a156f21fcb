"""Rules of the optimizer: what `config.optimizer.rules` sets for each parameter."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten, match_paths, unflatten

PyTree = Any
Rules = Sequence[tuple[str, Any]]


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
    parsed = [_parse(rule) for rule in rules]
    matched = match_paths(flatten(params), [pattern for pattern, _ in parsed], "optimizer.rules", every=True)
    return unflatten({path: parsed[index][1] for path, index in matched.items()})


def _parse(rule: tuple[str, Any]) -> tuple[str, ParameterRule]:
    try:
        pattern, settings = rule
        settings = dict(settings.items())
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"config.optimizer.rules: {rule!r} is not a pair of a pattern and a dictionary") from error
    known = [field.name for field in dataclasses.fields(ParameterRule)]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)} (lr 0 freezes)"
            raise ConfigError(f"config.optimizer.rules: {pattern!r} sets {name!r}{hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"config.optimizer.rules: {pattern!r} sets {name} to {value!r}; it has to be 0 or more")
    if settings.get("from_step", 0) != int(settings.get("from_step", 0)):
        raise ConfigError(
            f"config.optimizer.rules: {pattern!r} sets from_step to {settings['from_step']}, no whole number"
        )
    return pattern, ParameterRule(**settings)
