"""The matrix FLOPs of a training step, counted from the forward pass as it is written, before any compiler sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

PyTree = Any


@dataclass(frozen=True)
class MatrixFlops:
    """FLOPs of convolutions and matrix products, a multiply-add being two.

    Attributes:
        forward: of the forward pass.
        backward: of its gradients. A product of two arrays takes as much again for each of them that has a gradient.
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: MatrixFlops) -> MatrixFlops:
        return MatrixFlops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> MatrixFlops:
        return MatrixFlops(self.forward * times, self.backward * times)

    @property
    def total(self) -> int:
        """Of both passes."""
        return self.forward + self.backward


def count_matrix_flops(forward: Callable, trained: PyTree, *others: PyTree) -> MatrixFlops:
    """Counts the FLOPs of `forward(trained, *others)` and of its gradient in all of `trained`.

    Where an operation has a form for each platform, the one with most convolutions and products counts. Padding counts
    as if it were pixels, as in the usual formula: output size x kernel size x inputs.

    Args:
        forward: the pass; nothing is computed.
        trained: arrays or shapes that have a gradient.
        others: arrays or shapes that have none.
    """
    traced = jax.make_jaxpr(forward)(trained, *others)
    count = len(jax.tree.leaves(trained))
    return _of_program(traced.jaxpr, [place < count for place in range(len(traced.jaxpr.invars))])[0]


def _of_program(program: core.Jaxpr, with_gradient: Sequence[bool]) -> tuple[MatrixFlops, list[bool]]:
    """FLOPs of a traced program, and which of its results have a gradient, given which of its arguments have one.

    What no result depends on does not count: a compiler drops it.
    """
    known = {var for var, has_gradient in zip(program.invars, with_gradient, strict=True) if has_gradient}
    total = MatrixFlops()
    for equation in _needed(program):
        given = [not isinstance(var, core.Literal) and var in known for var in equation.invars]
        flops, results = _of_equation(equation, given)
        total += flops
        known.update(var for var, has_gradient in zip(equation.outvars, results, strict=True) if has_gradient)
    return total, [not isinstance(var, core.Literal) and var in known for var in program.outvars]


def _needed(program: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that a result depends on, in order."""
    read, equations = {var for var in program.outvars if not isinstance(var, core.Literal)}, []
    for equation in reversed(program.eqns):
        if read.intersection(equation.outvars):
            equations.append(equation)
            read.update(var for var in equation.invars if not isinstance(var, core.Literal))
    return equations[::-1]


def _of_equation(equation: core.JaxprEqn, given: list[bool]) -> tuple[MatrixFlops, list[bool]]:
    name, parameters = equation.primitive.name, equation.params
    everywhere = [any(given)] * len(equation.outvars)
    if name in ("dot_general", "conv_general_dilated"):
        flops = _product_flops(equation) if name == "dot_general" else _convolution_flops(equation)
        return MatrixFlops(flops, flops * sum(given)), everywhere
    if name == "stop_gradient":
        return MatrixFlops(), [False] * len(equation.outvars)
    if name == "cond":
        found = [_of_program(_open(branch), given[1:]) for branch in parameters["branches"]]
        return max((flops for flops, _ in found), key=lambda flops: flops.total), everywhere
    if name == "scan":
        flops, _ = _of_program(_open(parameters["jaxpr"]), _carried(parameters, given))
        return flops * parameters["length"], everywhere
    inner = next((parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters), None)
    if inner is not None and len(_open(inner).invars) == len(given):
        return _of_program(_open(inner), given)
    return MatrixFlops(), everywhere


def _carried(parameters: dict[str, Any], given: list[bool]) -> list[bool]:
    """Which arguments of a loop's body have a gradient, what it carries from turn to turn included."""
    first, count = parameters["num_consts"], parameters["num_carry"]
    while True:
        results = _of_program(_open(parameters["jaxpr"]), given)[1][:count]
        carried = [before or after for before, after in zip(given[first : first + count], results, strict=True)]
        if carried == given[first : first + count]:
            return given
        given = [*given[:first], *carried, *given[first + count :]]


def _open(program: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return getattr(program, "jaxpr", program)


def _product_flops(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(output) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: core.JaxprEqn) -> int:
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(output) * math.prod(kernel) // outputs
