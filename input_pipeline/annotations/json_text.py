"""JSON from strangers: errors with a line and a reason, a bound on memory, and keys that occur twice."""

from __future__ import annotations

import json
import re
from typing import Any

_TOO_DEEP = "lists or objects are nested too deeply"
_LONG_NUMBER = re.compile(r"[0-9]{4301}")  # Python converts up to 4,300 digits, because more take too long


class JsonError(ValueError):
    """Text that cannot be parsed.

    Attributes:
        reason: why.
        line: number of the line, from 1.
        has_more: whether another value follows the first one, as in JSON lines.
    """

    def __init__(self, reason: str, line: int = 1, *, has_more: bool = False):
        super().__init__(reason)
        self.reason, self.line, self.has_more = reason, line, has_more


class _RepeatedKeys(dict):
    """An object in which a key occurs several times; the last value counts.

    Attributes:
        repeated: a key that has different values.
    """

    repeated: str


def parse_json(text: str, max_values: int) -> Any:
    """Parses a JSON value.

    Args:
        text: the text.
        max_values: maximum number of values. A document such as `[[],[],...]` takes more than twenty times its size in
            memory.

    Raises:
        JsonError: the text is not valid JSON, has too many values, or is nested too deeply.
    """
    if len(text) > max_values and text.count(",") + text.count("[") + text.count("{") > max_values:
        raise JsonError(f"more than {max_values:,} values; write JSON lines, or raise config.limits.json_values")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno, has_more=error.msg.startswith("Extra data")) from None
    except RecursionError:
        raise JsonError(_TOO_DEEP) from None
    except ValueError:  # a number with too many digits
        match = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, match.start()) + 1 if match else 1
        raise JsonError("a number of more than 4,300 digits", line) from None


def find_repeated_key(value: Any) -> str | None:
    """Returns a key that occurs several times with different values in an object of `parse_json`, if there is one.

    Such an object is of a subclass of `dict`.
    """
    return value.repeated if type(value) is _RepeatedKeys else None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    for key, value in pairs:
        if result[key] is not value and result[key] != value:
            repeated = _RepeatedKeys(result)
            repeated.repeated = key
            return repeated
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)
