"""Checks of the shapes in signatures while tests run, with jaxtyping's import hook and beartype.

Annotations without a shape are not checked, because tests pass fake specs and models, and because checking them would
make importing the packages 8 seconds slower in each process.
"""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
from beartype import beartype

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("caption_jax", "input_pipeline")


def install() -> None:
    """Installs the hook, which applies `check_shapes` to the modules that use jaxtyping when they are imported."""
    jaxtyping.install_import_hook(find_annotated_modules(), f"{__name__}.{check_shapes.__name__}")


def find_annotated_modules() -> list[str]:
    """Returns the dotted names of the modules of both packages that use jaxtyping."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    annotated = [path.relative_to(ROOT) for path in files if "jaxtyping" in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in annotated]


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Context without checks, for tests of functions that raise errors of their own for invalid shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


class _ArrayMeta(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, jaxtyping.Array | np.ndarray | np.generic)


class AnyArray(metaclass=_ArrayMeta):
    """JAX arrays, and the NumPy arrays and scalars that JAX functions accept in their place."""


def check_shapes(function: Callable) -> Callable:
    """Decorates a function with runtime checks of the shapes in its annotations, if any.

    The fields of dataclasses of JAX arrays are not checked. Such dataclasses are pytrees, which `jax.vmap`,
    `jax.lax.scan` and `jax.tree.map` rebuild with leaves of other ranks or with leaves that are not arrays.
    """
    shapes = {name: hint for name, hint in function.__annotations__.items() if _array_types(hint)}
    types_in_use = set().union(*map(_array_types, shapes.values()))
    if not types_in_use or (function.__name__ == "__init__" and jaxtyping.Array in types_in_use):
        return function
    function.__annotations__ = {name: _widen(hint) for name, hint in shapes.items()}
    return beartype(function)


def _array_types(hint: Any) -> set[Any]:
    """Returns the array types that have a shape in an annotation."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return {hint.array_type}
    return set().union(*map(_array_types, typing.get_args(hint)))


def _widen(hint: Any) -> Any:
    """Replaces `Array` in an annotation with `AnyArray`."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return hint.dtype[AnyArray, hint.dim_str] if hint.array_type is jaxtyping.Array else hint
    if not _array_types(hint):
        return hint
    origin, arguments = typing.get_origin(hint), tuple(map(_widen, typing.get_args(hint)))
    return typing.Union[arguments] if origin in (typing.Union, types.UnionType) else origin[arguments]  # noqa: UP007
