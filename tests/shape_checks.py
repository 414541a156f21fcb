"""What checks the shapes in signatures while tests run: jaxtyping's import hook, with beartype.

Annotations without a shape are left to type checkers: tests pass stand-ins for specs and models, and each process that
imports the packages would start 8 seconds later.
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
    """Has every module that states shapes checked by `checked` from when it is imported."""
    jaxtyping.install_import_hook(modules_with_shapes(), f"{__name__}.{checked.__name__}")


def modules_with_shapes() -> list[str]:
    """Dotted names of the modules of both packages that import jaxtyping."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    stating = [path.relative_to(ROOT) for path in files if "jaxtyping" in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in stating]


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Within it nothing is checked: for tests of what a function itself says of arrays that do not fit."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


class _Accepts(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, jaxtyping.Array | np.ndarray | np.generic)


class AnyArray(metaclass=_Accepts):
    """What JAX takes where `Array` is annotated: a NumPy array or scalar, too."""


def checked(function: Callable) -> Callable:
    """The function with its shapes checked by beartype, where it states any.

    A dataclass of JAX arrays is a pytree, which `jax.vmap`, `jax.lax.scan` and `jax.tree.map` build of leaves of other
    ranks, or of no arrays at all: its fields are not checked.
    """
    shapes = {name: hint for name, hint in function.__annotations__.items() if _array_types(hint)}
    kinds = set().union(*map(_array_types, shapes.values()))
    if not kinds or (function.__name__ == "__init__" and jaxtyping.Array in kinds):
        return function
    function.__annotations__ = {name: _widened(hint) for name, hint in shapes.items()}
    return beartype(function)


def _array_types(hint: Any) -> set[Any]:
    """The types of the arrays whose shapes an annotation states."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return {hint.array_type}
    return set().union(*map(_array_types, typing.get_args(hint)))


def _widened(hint: Any) -> Any:
    """The annotation with `AnyArray` for `Array`."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return hint.dtype[AnyArray, hint.dim_str] if hint.array_type is jaxtyping.Array else hint
    if not _array_types(hint):
        return hint
    origin, arguments = typing.get_origin(hint), tuple(map(_widened, typing.get_args(hint)))
    return typing.Union[arguments] if origin in (typing.Union, types.UnionType) else origin[arguments]  # noqa: UP007
