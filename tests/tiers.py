"""Parameters of a test that are divided between two tiers."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_or_long(values: Iterable[Any], slow: Container[Any], ids: Iterable[str] = ()) -> list[Any]:
    """Returns test parameters, each in the slow or in the long tier (docs/testing.md).

    Args:
        values: the values of one parameter, or tuples of several.
        slow: the values in the slow tier, or their IDs if there are `ids`. The others are in the long tier.
        ids: the ID of each value.
    """
    values = list(values)
    names = list(ids) or [None] * len(values)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=pytest.mark.slow if (value if name is None else name) in slow else pytest.mark.long,
            id=name,
        )
        for value, name in zip(values, names, strict=True)
    ]
