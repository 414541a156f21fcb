"""Errors that the user can fix: `main.py` prints their message as one line.

Any other exception is a bug in the program or in a library and keeps its traceback. Each class also derives from the
matching builtin exception, so `except ValueError` works. Imports nothing, because both packages use these.
"""

from __future__ import annotations


class UserError(Exception):
    """Base class. The message names the config key, flag, file or image at fault and what to do about it."""


class ConfigError(UserError, ValueError):
    """An invalid value of a config key or flag, on its own or in combination with others."""


class DataError(UserError, ValueError):
    """Unusable images or captions; the message names them and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a key, a flag or a workdir refers to does not exist."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package is not installed; the message names the command that installs it."""
