"""Errors that the user can fix, which `main.py` prints as a one-line message.

Any other exception is a bug in the program or in a library and is printed with its traceback. Each class also derives
from the matching builtin exception, so `except ValueError` works. This module imports nothing, because both packages
use it.
"""

from __future__ import annotations


class UserError(Exception):
    """Base class. The message names the config key, flag, file or image at fault and the remedy."""


class ConfigError(UserError, ValueError):
    """An invalid value of a config key or flag, or an invalid combination of values."""


class DataError(UserError, ValueError):
    """Unusable images or captions; the message names them and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a key, a flag or a workdir refers to does not exist."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package is not installed; the message names the command that installs it."""


class StorageError(UserError, OSError):
    """A disk is full, read-only or broken, or refuses access; the message names the file."""


class ImageError(UserError, ValueError):
    """An unusable image, with its `name` and the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.name, self.reason)
