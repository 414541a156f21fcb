"""Errors that commands report to the user in one line, without a traceback.

`input_pipeline.errors` defines the base class `UserError` and the errors for configs, data, files and packages.
"""

from __future__ import annotations

from input_pipeline.disk_faults import find_disk_fault
from input_pipeline.errors import ConfigError, DataError, MissingFileError, MissingPackageError, StorageError, UserError

__all__ = [
    "ConfigError",
    "DataError",
    "LockedError",
    "MissingFileError",
    "MissingPackageError",
    "ProcessesError",
    "StorageError",
    "UnknownKeyError",
    "UserError",
    "WeightsError",
    "WorkdirError",
    "describe_error",
    "may_be_consequence",
    "user_message",
]


class UnknownKeyError(UserError, AttributeError):
    """A config file or a flag sets a key that the config does not have."""


class WorkdirError(UserError, ValueError):
    """A stored run or index is damaged, or belongs to another model, config or version."""


class WeightsError(UserError, ValueError):
    """Pretrained weights cannot be used; the message names the file and the key."""


class ProcessesError(UserError, RuntimeError):
    """The processes of a run cannot find each other, or disagree about the run."""


class LockedError(UserError, BlockingIOError):
    """Another process is writing to the same files."""


def user_message(error: BaseException) -> str | None:
    """Returns the message of the first `UserError` in the chain of causes of an error.

    Returns:
        The message, or None for all other errors, which need a traceback.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    return None


def describe_error(error: BaseException) -> str:
    """Returns the first line of an error of any type."""
    message = user_message(error)
    if message is None and (fault := find_disk_fault(error)) is not None:
        message = fault.describe()
    message = message or f"{type(error).__name__}: {error}".removesuffix(": ")
    return message.strip().splitlines()[0][:500]


def may_be_consequence(error: BaseException) -> bool:
    """Returns whether the cause of an error may be that another process of the run has ended.

    Collective operations then raise errors of several types.
    """
    return isinstance(error, Exception) and user_message(error) is None and find_disk_fault(error) is None
