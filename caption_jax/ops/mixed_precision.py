"""Operations of low-precision arrays with float32 results or float32 gradients."""

from __future__ import annotations

import functools
import string

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def einsum_float32_reference(
    subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes `jnp.einsum` with a float32 result. The right array is cast to the dtype of the left one."""
    return jnp.einsum(subscripts, left, right.astype(left.dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum_float32_reference`, whose backward pass first casts the cotangent to the dtype of the operands.

    Autodiff would instead convert the operands to float32, and float32 matrix products run at half the speed on an H200
    (docs/results/h200.md). Both accumulate in float32. The gradient of a float32 parameter on the right is float32.
    """
    return einsum_float32_reference(subscripts, left, right)


def _forward(subscripts: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return einsum_float32_reference(subscripts, left, right), (left, right)


def _backward(subscripts: str, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    left, right = residuals
    gradient = gradient.astype(left.dtype)
    _, pullback = jax.vjp(functools.partial(jnp.einsum, subscripts), left, right.astype(left.dtype))
    left_gradient, right_gradient = pullback(gradient)
    if right.dtype == left.dtype:
        return left_gradient, right_gradient
    operands, result = subscripts.split("->")
    left_axes, right_axes = operands.split(",")
    leading = string.ascii_uppercase[: left.ndim - len(left_axes.replace("...", ""))]
    transposed = f"{left_axes},{result}->{right_axes}".replace("...", leading)
    return left_gradient, jnp.einsum(transposed, left, gradient, preferred_element_type=right.dtype)


einsum_float32.defvjp(_forward, _backward)


def multiply_reference(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel` in the dtype of `x`, to which the kernel is cast."""
    return jnp.dot(x, kernel.astype(x.dtype))


def multiply(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """`multiply_reference`, which on a CPU rounds a float32 product.

    XLA:CPU uses the matrix units for bfloat16 (AMX) only for products whose result is float32.
    """
    if x.dtype == jnp.float32:
        return multiply_reference(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_round_float32_product, default=multiply_reference)


def _round_float32_product(x: Array, kernel: Array) -> Array:
    return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def add_parameter(x: Float[Array, "..."], parameter: Float[Array, "..."]) -> Float[Array, "..."]:
    """Adds a float32 parameter, such as a bias, that is broadcast over the leading axes of `x`.

    The result has the dtype of `x`. The sum over these axes that computes the gradient of the parameter is in float32
    too, whereas a parameter that is first cast to bfloat16 would have a bfloat16 gradient.
    """
    return (x + parameter).astype(x.dtype)


def product_gradients(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], gradient: Float[Array, "*batch outputs"]
) -> tuple[Float[Array, "*batch inputs"], Float[Array, "inputs outputs"]]:
    """Returns the gradients of `x` and `kernel` in `x @ kernel.astype(x.dtype)`, in their dtypes.

    The operands of both matrix products have the dtype of `x`, and sums are accumulated in float32. If the kernel is
    float32, the sum of its gradient is never rounded to bfloat16, nor is the sum over devices.
    """
    x_gradient = lax.dot_general(gradient, kernel.astype(x.dtype), (((gradient.ndim - 1,), (1,)), ((), ())))
    batch_axes = tuple(range(x.ndim - 1))
    contraction = (batch_axes, batch_axes), ((), ())
    return x_gradient, lax.dot_general(x, gradient, contraction, preferred_element_type=kernel.dtype)
