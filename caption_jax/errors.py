"""Errors that speak to whoever typed the command: a line on the error stream instead of a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("caption_jax", "input_pipeline", "configs", "main.py")


def message_for_the_user(error: BaseException) -> str | None:
    """What to say of an error where this project raised it, by a `raise` of its own, about a value, a file or a run.

    Such a message says what to change, and a traceback would hide it. A library may have raised it anew in between. All
    else is a mistake of the program, or a library's own: None, for its traceback is needed.
    """
    if _is_ours(error):
        return str(error)
    if error.__cause__ is not None and _is_ours(error.__cause__):
        return str(error.__cause__)
    return None


def _is_ours(error: BaseException) -> bool:
    if not isinstance(error, ValueError | OSError | RuntimeError) or error.__traceback__ is None:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(last.filename).resolve()
    if not path.is_relative_to(_ROOT) or path.relative_to(_ROOT).parts[0] not in _OURS:
        return False
    return (last.line or "").startswith("raise ")
