"""Output of names and captions on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any


def allow_any_output() -> None:
    """Configures stdout to write characters that it cannot encode as escapes, such as `\\udcff`."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # absent if stdout is not a file, as in a notebook
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def json_line(values: dict[str, Any]) -> str:
    """Serialises one JSON object, without a trailing newline."""
    text = json.dumps(values, ensure_ascii=False)
    # JSON must be valid UTF-8, so surrogates are written as ASCII escapes, which `json.loads` decodes.
    return text if text.isascii() or not _has_surrogates(text) else json.dumps(values)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
