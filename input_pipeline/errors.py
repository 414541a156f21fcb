"""Errors that whoever typed the command can put right: `main.py` prints their message as one line.

Every other exception is a mistake of the program or of a library and keeps its traceback. Each kind is also the builtin
exception that describes it, so that `except ValueError` catches what it names. No imports: both packages use these.
"""

from __future__ import annotations


class UserError(Exception):
    """Base class. The message names the config key, flag, file or image at fault and what to do about it."""


class ConfigError(UserError, ValueError):
    """A config key or a flag with a value that cannot be used, by itself or together with others."""


class DataError(UserError, ValueError):
    """Images or captions that cannot be used as they are; the message names them and says what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a key, a flag or a workdir should hold is not there."""
