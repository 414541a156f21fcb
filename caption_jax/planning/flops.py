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

    def __mul__(self, factor: int) -> MatrixFlops:
        return MatrixFlops(self.forward * factor, self.backward * factor)

    @property
    def total(self) -> int:
        """FLOPs of both passes."""
        return self.forward + self.backward


def count_matrix_flops(forward: Callable, trainable: PyTree, *inputs: PyTree) -> MatrixFlops:
    """Counts the FLOPs of `forward(trainable, *inputs)` and of its gradient with respect to `trainable`.

    If an operation has a separate implementation for each platform, the one with the most matrix FLOPs is counted.
    Padding is counted like pixels, as in the standard formula: output size x kernel size x input channels.

    Args:
        forward: the forward pass, which is traced but not run.
        trainable: arrays or shapes that are differentiated.
        inputs: arrays or shapes that are not differentiated.
    """
    traced = jax.make_jaxpr(forward)(trainable, *inputs)
    count = len(jax.tree.leaves(trainable))
    return _count_jaxpr_flops(traced.jaxpr, [index < count for index in range(len(traced.jaxpr.invars))])[0]


def _count_jaxpr_flops(jaxpr: core.Jaxpr, has_gradient: Sequence[bool]) -> tuple[MatrixFlops, list[bool]]:
    """Counts the FLOPs of a jaxpr, without equations that no output depends on, because the compiler removes them.

    Args:
        jaxpr: the jaxpr.
        has_gradient: whether each input has a gradient.

    Returns:
        The FLOPs, and whether each output has a gradient.
    """
    differentiated = {var for var, flag in zip(jaxpr.invars, has_gradient, strict=True) if flag}
    total = MatrixFlops()
    for equation in _find_live_equations(jaxpr):
        input_flags = [not isinstance(var, core.Literal) and var in differentiated for var in equation.invars]
        flops, output_flags = _count_equation_flops(equation, input_flags)
        total += flops
        differentiated.update(var for var, flag in zip(equation.outvars, output_flags, strict=True) if flag)
    return total, [not isinstance(var, core.Literal) and var in differentiated for var in jaxpr.outvars]


def _find_live_equations(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Returns the equations that an output depends on, in order."""
    used, equations = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if used.intersection(equation.outvars):
            equations.append(equation)
            used.update(var for var in equation.invars if not isinstance(var, core.Literal))
    return equations[::-1]


def _count_equation_flops(equation: core.JaxprEqn, has_gradient: list[bool]) -> tuple[MatrixFlops, list[bool]]:
    name, parameters = equation.primitive.name, equation.params
    output_flags = [any(has_gradient)] * len(equation.outvars)
    if name in ("dot_general", "conv_general_dilated"):
        flops = _count_product_flops(equation) if name == "dot_general" else _count_convolution_flops(equation)
        return MatrixFlops(flops, flops * sum(has_gradient)), output_flags
    if name == "stop_gradient":
        return MatrixFlops(), [False] * len(equation.outvars)
    if name == "cond":
        jaxprs = map(_to_open_jaxpr, _list_possible_branches(parameters))
        branches = [_count_jaxpr_flops(jaxpr, has_gradient[1:]) for jaxpr in jaxprs]
        return max((flops for flops, _ in branches), key=lambda flops: flops.total), output_flags
    if name == "scan":
        body_gradients = _propagate_scan_gradients(parameters, has_gradient)
        flops, _ = _count_jaxpr_flops(_to_open_jaxpr(parameters["jaxpr"]), body_gradients)
        return flops * parameters["length"], output_flags
    inner = next((parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters), None)
    if inner is not None and len(_to_open_jaxpr(inner).invars) == len(has_gradient):
        return _count_jaxpr_flops(_to_open_jaxpr(inner), has_gradient)
    return MatrixFlops(), output_flags


def _list_possible_branches(parameters: dict[str, Any]) -> Sequence[core.Jaxpr | core.ClosedJaxpr]:
    """Returns the branches of a conditional; of `lax.platform_dependent`, only the one for any other platform.

    This branch defines the operation. The branch for a CPU may, for example, convolve a channel of zeros too.
    """
    branches, platforms = parameters["branches"], parameters.get("branches_platforms") or ()
    return [branches[platforms.index(None)]] if None in platforms else branches


def _propagate_scan_gradients(parameters: dict[str, Any], has_gradient: list[bool]) -> list[bool]:
    """Returns whether each input of a scan's body has a gradient, propagated through the carry to a fixed point."""
    start, length = parameters["num_consts"], parameters["num_carry"]
    while True:
        before = has_gradient[start : start + length]
        after = _count_jaxpr_flops(_to_open_jaxpr(parameters["jaxpr"]), has_gradient)[1][:length]
        carry = [old or new for old, new in zip(before, after, strict=True)]
        if carry == before:
            return has_gradient
        has_gradient = [*has_gradient[:start], *carry, *has_gradient[start + length :]]


def _to_open_jaxpr(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _count_product_flops(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left_shape, output_shape = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(output_shape) * math.prod(left_shape[axis] for axis in contracted)


def _count_convolution_flops(equation: core.JaxprEqn) -> int:
    kernel_shape, output_shape = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    output_channels = kernel_shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(output_shape) * math.prod(kernel_shape) // output_channels
