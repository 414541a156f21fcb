"""Checks the shapes in signatures while tests run, with jaxtyping's import hook and beartype.

Annotations without a shape are not checked: tests pass stand-ins for specs and models, and the import of the packages
would take 8 seconds longer in each process.
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
    """Installs the hook, which applies `checked` to the modules with shapes when they are imported."""
    jaxtyping.install_import_hook(modules_with_shapes(), f"{__name__}.{checked.__name__}")


def modules_with_shapes() -> list[str]:
    """Dotted names of the modules of both packages that import jaxtyping."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    stating = [path.relative_to(ROOT) for path in files if "jaxtyping" in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in stating]


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Disables the checks, for tests of a function's own errors for arrays of the wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


class _Accepts(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, jaxtyping.Array | np.ndarray | np.generic)


class AnyArray(metaclass=_Accepts):
    """Any array that JAX accepts for `Array`, including NumPy arrays and scalars."""


def checked(function: Callable) -> Callable:
    """Returns the function with runtime checks of the shapes in its annotations, if it has any.

    Fields of dataclasses of JAX arrays are not checked. They are pytrees, which `jax.vmap`, `jax.lax.scan` and
    `jax.tree.map` rebuild with leaves of other ranks, or with leaves that are not arrays.
    """
    shapes = {name: hint for name, hint in function.__annotations__.items() if _array_types(hint)}
    kinds = set().union(*map(_array_types, shapes.values()))
    if not kinds or (function.__name__ == "__init__" and jaxtyping.Array in kinds):
        return function
    function.__annotations__ = {name: _widened(hint) for name, hint in shapes.items()}
    return beartype(function)


def _array_types(hint: Any) -> set[Any]:
    """Returns the array types in an annotation that have a shape."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return {hint.array_type}
    return set().union(*map(_array_types, typing.get_args(hint)))


def _widened(hint: Any) -> Any:
    """Returns the annotation with `Array` replaced by `AnyArray`."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return hint.dtype[AnyArray, hint.dim_str] if hint.array_type is jaxtyping.Array else hint
    if not _array_types(hint):
        return hint
    origin, arguments = typing.get_origin(hint), tuple(map(_widened, typing.get_args(hint)))
    return typing.Union[arguments] if origin in (typing.Union, types.UnionType) else origin[arguments]  # noqa: UP007
