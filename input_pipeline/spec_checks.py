"""Checks of the fields of a spec: a table of what each may be, from which the error message is made.

    def __post_init__(self):
        check_fields(self, "config.train", steps=at_least(0, "for epochs"), packing=one_of("auto", "never"))

raises `ConfigError("config.train.steps is -1; it must be 0 (for epochs) or more")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.errors import ConfigError


@dataclass(frozen=True)
class Allowed:
    """The values that a field may have.

    Attributes:
        wanted: what the value "has to be", for the message.
        holds: whether a value is one of them.
    """

    wanted: str
    holds: Callable[[Any], bool]


def check_fields(spec: Any, key: str, **allowed: Allowed) -> None:
    """Checks fields of a dataclass.

    Args:
        spec: an instance.
        key: what the message calls it, such as "config.train".
        allowed: by name of the field.

    Raises:
        ConfigError: of the first value that is not allowed; the message names its key, and what it has to be.
    """
    for name, values in allowed.items():
        value = getattr(spec, name)
        if not values.holds(value):
            raise ConfigError(f"{key}.{name} is {value!r}; it must be {values.wanted}")


def number(wanted: str, holds: Callable[[float], bool]) -> Allowed:
    """Finite numbers for which `holds` is true.

    Arrays are let through: inside a program, a setting may be a traced scalar.
    """

    def holds_of_finite(value: Any) -> bool:
        return not isinstance(value, int | float) or (-math.inf < value < math.inf and holds(value))

    return Allowed(wanted, holds_of_finite)


def at_least(low: float, meaning: str = "") -> Allowed:
    """Numbers from `low` on; `meaning` is that of `low` itself, such as "for none"."""
    return number(f"{low} ({meaning}) or more" if meaning else f"{low} or more", lambda value: value >= low)


def above(low: float) -> Allowed:
    """Numbers greater than `low`."""
    return number(f"above {low}", lambda value: value > low)


def interval(bounds: str, meaning: str = "") -> Allowed:
    """Numbers in an interval such as "[0, 1)", which lacks 1; `meaning` is that of an end, such as "0 for none"."""
    low, high = map(float, bounds[1:-1].split(","))

    def holds(value: float) -> bool:
        return (value >= low if bounds[0] == "[" else value > low) and (
            value <= high if bounds[-1] == "]" else value < high
        )

    return number(f"in {bounds}, {meaning}" if meaning else f"in {bounds}", holds)


def one_of(*choices: Any) -> Allowed:
    """One of a few values."""
    *others, last = map(repr, choices)
    return Allowed(f"{', '.join(others)} or {last}" if others else last, lambda value: value in choices)


def texts(what: str) -> Allowed:
    """A list of strings, none of them empty or blank; `what` names one of them in the plural."""
    return Allowed(
        f"a list of {what}",
        lambda value: isinstance(value, list | tuple) and all(isinstance(text, str) and text.strip() for text in value),
    )


# What a random key is made of: 64 bits.
SEED = number("a whole number of 64 bits", lambda value: -(2**63) <= value < 2**63)
