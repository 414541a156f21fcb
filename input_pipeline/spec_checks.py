"""Declarative validation of the fields of a spec.

    def __post_init__(self):
        check_fields(self, "config.train", steps=at_least(0, "for epochs"), packing=one_of("auto", "never"))

raises `ConfigError("config.train.steps is -1; it must be 0 (for epochs) or more")`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from input_pipeline.errors import ConfigError

_MAX_SHOWN = 300  # characters of a value in an error message
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 20

_LARGEST_INTEGER, _LARGEST_FLOAT = 2**31 - 1, 3.4e38


@dataclass(frozen=True)
class Constraint:
    """A condition on the value of a field.

    Attributes:
        description: completes "it must be ..." in the error message.
        is_met: whether a value is valid.
        largest: the largest valid number; None if the field is not a number.
    """

    description: str
    is_met: Callable[[Any], bool]
    largest: float | None = None


def show(value: Any) -> str:
    """Returns the `repr` of a value for an error message, shortened if it is long or nested deeply."""
    text = _REPR.repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def check_fields(spec: Any, key: str, **constraints: Constraint) -> None:
    """Validates fields of a dataclass instance.

    Args:
        spec: the instance.
        key: config key of the instance, such as "config.train", for error messages.
        constraints: constraints by field name.

    Raises:
        ConfigError: a value is invalid. The message names the key of the first invalid value and its constraint.
    """
    for name, constraint in constraints.items():
        value = getattr(spec, name)
        if not constraint.is_met(value):
            if isinstance(value, float) and math.isinf(value):
                bound = "finite and "
            elif constraint.largest is not None and isinstance(value, int | float) and value > constraint.largest:
                bound = f"at most {constraint.largest:,} and "
            else:
                bound = ""
            raise ConfigError(f"{key}.{name} is {show(value)}; it must be {bound}{constraint.description}")


def number(description: str, is_met: Callable[[float], bool], largest: float | None = None) -> Constraint:
    """Requires a finite number up to `largest` for which `is_met` is true.

    By default, integers must fit into 32 bits and other numbers into float32, as on the devices.

    Arrays are not checked, because a field may be a traced scalar inside a jitted function.
    """

    def is_met_and_finite(value: Any) -> bool:
        if not isinstance(value, int | float):
            return True
        bound = _largest(value) if largest is None else largest
        return -math.inf < value < math.inf and -bound - 1 <= value <= bound and is_met(value)

    return Constraint(description, is_met_and_finite, _LARGEST_INTEGER if largest is None else largest)


def _largest(value: float) -> float:
    return _LARGEST_FLOAT if isinstance(value, float) else _LARGEST_INTEGER


def at_least(low: float, meaning: str = "", largest: float | None = None) -> Constraint:
    """Requires a number greater than or equal to `low`; `meaning` explains the value `low`, such as "for none"."""
    description = f"{low} ({meaning}) or more" if meaning else f"{low} or more"
    return number(description, lambda value: value >= low, largest)


def greater_than(low: float) -> Constraint:
    """Requires a number greater than `low`."""
    return number(f"above {low}", lambda value: value > low)


def interval(bounds: str, meaning: str = "") -> Constraint:
    """Requires a number in an interval such as "[0, 1)"; `meaning` explains an endpoint, such as "0 for none"."""
    low, high = map(float, bounds[1:-1].split(","))

    def is_met(value: float) -> bool:
        return (value >= low if bounds[0] == "[" else value > low) and (
            value <= high if bounds[-1] == "]" else value < high
        )

    return number(f"in {bounds} ({meaning})" if meaning else f"in {bounds}", is_met)


def fitted_or(description: str, request: float, constraint: Constraint) -> Constraint:
    """Requires the value `request`, which stands for a value that is fitted to the data, or another constraint."""
    return Constraint(
        f"{description}, or {constraint.description}",
        lambda value: value == request or constraint.is_met(value),
        constraint.largest,
    )


def one_of(*choices: Any) -> Constraint:
    """Requires one of a fixed set of values."""
    *others, last = map(repr, choices)
    return Constraint(f"{', '.join(others)} or {last}" if others else last, lambda value: value in choices)


def strings(items: str) -> Constraint:
    """Requires a list of non-blank strings; `items` describes them in the error message, such as "files"."""
    return Constraint(
        f"a list of {items}",
        lambda value: isinstance(value, list | tuple) and all(isinstance(text, str) and text.strip() for text in value),
    )


# Seeds of `jax.random.key` are 64-bit integers.
SEED = number("a 64-bit integer", lambda value: True, largest=2**63 - 1)
