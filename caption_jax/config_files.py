"""Config files: the packaged configs, and files of users.

The packaged configs are in `configs/` of a checkout or in `caption_jax/configs` of an installation. In both cases,
configs import each other as `caption_jax.configs.<name>`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = "caption_jax.configs"
_HERE = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = os.path.join(_HERE, "configs")
FOLDER = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.join(os.path.dirname(_HERE), "configs")


def find_config(value: str) -> str:
    """Resolves the value of `--config` to the path of a packaged config.

    Args:
        value: path or name, optionally followed by a colon and the argument of the config. `coco`, `coco.py` and
            `configs/coco.py` refer to the packaged config, unless a file with that path exists.

    Returns:
        The path and the argument, or `value` unchanged if it does not refer to a packaged config.
    """
    path, colon, argument = value.partition(":")
    folder, name = os.path.split(path)
    packaged = os.path.join(FOLDER, f"{name.removesuffix('.py')}.py")
    if folder not in ("", "configs") or os.path.isfile(path) or not os.path.isfile(packaged):
        return value
    return f"{packaged}{colon}{argument}"


def list_configs() -> dict[str, str]:
    """Returns the packaged configs: their docstrings by name. Does not import them."""
    docstrings = {}
    for file_name in sorted(os.listdir(FOLDER)):
        name, suffix = os.path.splitext(file_name)
        if suffix == ".py" and name != "__init__":
            docstrings[name] = ast.get_docstring(ast.parse(_read_source(os.path.join(FOLDER, file_name)))) or ""
    return docstrings


def load_config(value: str) -> ConfigDict:
    """Loads the config that `--config` selects: calls `get_config` of a config file.

    Args:
        value: see `find_config`.

    Raises:
        MissingFileError: there is no such file and no packaged config of this name.
        ConfigError: the file is not a valid config; the message names the line. Errors of our own that `get_config`
            raises are not converted.
    """
    from caption_jax.errors import ConfigError, UnknownKeyError, UserError

    path, colon, argument = find_config(value).partition(":")
    if not os.path.isfile(path):
        raise _missing_config(path)
    try:
        module = _run_module(path)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"{path} has no function get_config, which must return the config")
        config = module.get_config(argument) if colon else module.get_config()
    except UserError:
        raise
    except Exception as error:  # user code may fail with any exception type
        kind = UnknownKeyError if isinstance(error, AttributeError) else ConfigError
        raise kind(_describe_error(error, path)) from error
    return _as_config_dict(config, path)


def _as_config_dict(config: object, path: str) -> ConfigDict:
    from ml_collections import ConfigDict

    from caption_jax.errors import ConfigError

    if isinstance(config, Mapping):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config must return a ConfigDict, not {type(config).__name__}")
    return config


def _missing_config(path: str) -> Exception:
    from caption_jax.errors import ConfigError, MissingFileError

    names = list_configs()
    if os.path.isdir(path):
        return ConfigError(f"--config={path} is a folder; it must be a config file, or one of {', '.join(names)}")
    name = os.path.basename(path).removesuffix(".py")
    similar = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean {similar[0]}? The" if similar else "the"
    return MissingFileError(f"--config={path}: no such file; {remedy} packaged configs are {', '.join(names)}")


def _run_module(path: str) -> ModuleType:
    """Runs a config file as the module `config_config`, the name that ml_collections gives to the file of a flag."""
    module = ModuleType("config_config")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look up the module of their class
    exec(compile(_read_source(path), path, "exec"), module.__dict__)
    return module


def _read_source(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _describe_error(error: Exception, path: str) -> str:
    """Returns a one-line message for an error in a config file, with the line of the file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    location = f"{path}, line {lines[-1]}" if lines else path
    text = str(error)
    if unknown := re.search(r'Key "([^"]+)" does not exist', text):  # ml_collections also prints all other keys
        hint = re.search(r'Did you mean "[^"]+"', text)
        return f"{location}: the config has no key {unknown[1]!r}" + (f". {hint[0]}?" if hint else "")
    return f"{location}: {type(error).__name__}: {' '.join(text.split())}"


class _CheckoutFinder(importlib.abc.MetaPathFinder):
    """Import finder for `caption_jax.configs` in a checkout, where `configs/` is not inside `caption_jax/`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PACKAGE:
            return None
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [FOLDER]
        return spec


def make_importable() -> None:
    """Makes the configs of a checkout importable. Idempotent."""
    if FOLDER != _INSTALLED and not any(isinstance(finder, _CheckoutFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CheckoutFinder())  # takes precedence over an editable installation of another checkout
