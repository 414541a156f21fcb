"""The kinds of error that speak to the user, and the line that a command prints of one.

`input_pipeline.errors` has the base class `UserError` and the kinds that concern data.
"""

from __future__ import annotations

from input_pipeline.errors import ConfigError, DataError, MissingFileError, UserError

__all__ = [
    "ConfigError",
    "DataError",
    "LockedError",
    "MissingFileError",
    "MissingPackageError",
    "UserError",
    "WeightsError",
    "WorkdirError",
    "message_for_the_user",
]


class WorkdirError(UserError, ValueError):
    """What a run or an index has stored is damaged, or belongs to another model, config or version."""


class WeightsError(UserError, ValueError):
    """Weights trained elsewhere that cannot be used; the message names the file and the key at fault."""


class LockedError(UserError, BlockingIOError):
    """Another process is writing to the same files."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package is not installed; the message says how to install it."""


def message_for_the_user(error: BaseException) -> str | None:
    """The message of a `UserError`, also of one that another error was raised `from`, as libraries do.

    Returns:
        None for anything else: a mistake of the program or of a library, whose traceback is needed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    return None
