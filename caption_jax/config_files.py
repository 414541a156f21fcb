"""Packaged configs, in `configs/` of a checkout or in `caption_jax/configs` of an installation.

In both cases, configs import each other as `caption_jax.configs.<name>`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

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
