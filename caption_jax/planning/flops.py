"""Matrix FLOPs of a training step, counted in the jaxpr of the forward pass, before compilation."""

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
    """FLOPs of convolutions and matrix products, where a multiply-add counts as two.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass. Each operand that has a gradient costs as much as the forward product.
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: MatrixFlops) -> MatrixFlops:
        return MatrixFlops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> MatrixFlops:
        return MatrixFlops(self.forward * times, self.backward * times)

    @property
    def total(self) -> int:
        """FLOPs of both passes."""
        return self.forward + self.backward


def count_matrix_flops(forward: Callable, trained: PyTree, *others: PyTree) -> MatrixFlops:
    """Counts the FLOPs of `forward(trained, *others)` and of its gradient with respect to `trained`.

    For operations with one implementation per platform, the one with the most matrix FLOPs is counted. Padding is
    counted like pixels, as in the standard formula: output size x kernel size x input channels.

    Args:
        forward: the forward pass, which is only traced.
        trained: arrays or shapes that have gradients.
        others: arrays or shapes that have none.
    """
    traced = jax.make_jaxpr(forward)(trained, *others)
    count = len(jax.tree.leaves(trained))
    return _jaxpr_flops(traced.jaxpr, [index < count for index in range(len(traced.jaxpr.invars))])[0]


def _jaxpr_flops(jaxpr: core.Jaxpr, has_gradient: Sequence[bool]) -> tuple[MatrixFlops, list[bool]]:
    """Returns the FLOPs of a jaxpr and which of its outputs have a gradient, from which of its inputs have one.

    Equations that no output depends on are not counted, because the compiler removes them.
    """
    differentiated = {var for var, flag in zip(jaxpr.invars, has_gradient, strict=True) if flag}
    total = MatrixFlops()
    for equation in _live_equations(jaxpr):
        inputs = [not isinstance(var, core.Literal) and var in differentiated for var in equation.invars]
        flops, outputs = _equation_flops(equation, inputs)
        total += flops
        differentiated.update(var for var, flag in zip(equation.outvars, outputs, strict=True) if flag)
    return total, [not isinstance(var, core.Literal) and var in differentiated for var in jaxpr.outvars]


def _live_equations(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that an output depends on, in order."""
    used, equations = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if used.intersection(equation.outvars):
            equations.append(equation)
            used.update(var for var in equation.invars if not isinstance(var, core.Literal))
    return equations[::-1]


def _equation_flops(equation: core.JaxprEqn, has_gradient: list[bool]) -> tuple[MatrixFlops, list[bool]]:
    name, parameters = equation.primitive.name, equation.params
    outputs = [any(has_gradient)] * len(equation.outvars)
    if name in ("dot_general", "conv_general_dilated"):
        flops = _product_flops(equation) if name == "dot_general" else _convolution_flops(equation)
        return MatrixFlops(flops, flops * sum(has_gradient)), outputs
    if name == "stop_gradient":
        return MatrixFlops(), [False] * len(equation.outvars)
    if name == "cond":
        branches = [_jaxpr_flops(_open(branch), has_gradient[1:]) for branch in parameters["branches"]]
        return max((flops for flops, _ in branches), key=lambda flops: flops.total), outputs
    if name == "scan":
        flops, _ = _jaxpr_flops(_open(parameters["jaxpr"]), _scan_gradients(parameters, has_gradient))
        return flops * parameters["length"], outputs
    inner = next((parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters), None)
    if inner is not None and len(_open(inner).invars) == len(has_gradient):
        return _jaxpr_flops(_open(inner), has_gradient)
    return MatrixFlops(), outputs


def _scan_gradients(parameters: dict[str, Any], has_gradient: list[bool]) -> list[bool]:
    """Returns which inputs of the body of a scan have a gradient, propagated through the carry to a fixed point."""
    first, count = parameters["num_consts"], parameters["num_carry"]
    while True:
        results = _jaxpr_flops(_open(parameters["jaxpr"]), has_gradient)[1][:count]
        carry = [before or after for before, after in zip(has_gradient[first : first + count], results, strict=True)]
        if carry == has_gradient[first : first + count]:
            return has_gradient
        has_gradient = [*has_gradient[:first], *carry, *has_gradient[first + count :]]


def _open(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _product_flops(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(output) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: core.JaxprEqn) -> int:
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(output) * math.prod(kernel) // outputs
