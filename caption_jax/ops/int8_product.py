"""Matrix product with a kernel of 8-bit integers."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

LEVELS = 127  # the integers are in [-127, 127]

# XLA:CPU computes products of fewer rows one multiplication at a time, which is slower than 8 rows.
_MIN_ROWS = 8


class Int8Array(NamedTuple):
    """An array of 8-bit integers with a scale per output channel; its value is `values * scales`.

    Attributes:
        values: the integers.
        scales: scales, which have size 1 in all axes except that of the output channels.
    """

    values: Int8[Array, "..."]
    scales: Float[Array, "..."]


def int8_product_reference(
    x: Float[Array, "*batch in_features"], kernel: Int8Array, inputs: Literal["rows", "columns"] = "rows"
) -> Float[Array, "*batch out_features"]:
    """Returns `x @ kernel` in float32.

    Args:
        x: inputs. The operands of the product have the dtype of `x`.
        kernel: kernel with a scale per output feature.
        inputs: whether the input features are the rows of the kernel or, as in an embedding, its columns.
    """
    product = _contract(x, kernel.values.astype(x.dtype), inputs, jnp.float32)
    return product * kernel.scales.reshape(-1)


def int8_product(
    x: Float[Array, "*batch in_features"], kernel: Int8Array, inputs: Literal["rows", "columns"] = "rows"
) -> Float[Array, "*batch out_features"]:
    """`int8_product_reference`; on a CPU, the inputs are rounded to 8-bit integers as well.

    Each row of inputs has its own scale, the largest magnitude in it / 127, so results do not depend on the other rows.
    A sum of n products changes by at most n * 127 * 0.5 scales of the row and the kernel. Elsewhere, the
    kernel is converted to the dtype of `x`. `python -m benchmarks.quantized` compares the speed of captioning.
    """
    multiply_integers = functools.partial(_multiply_integers, inputs=inputs)
    return lax.platform_dependent(
        x, kernel, cpu=multiply_integers, default=functools.partial(int8_product_reference, inputs=inputs)
    )


def _multiply_integers(x: Array, kernel: Int8Array, inputs: str) -> Array:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    count = rows.shape[0]
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    row_scales = jnp.where(largest > 0, largest, LEVELS) / LEVELS
    integers = jnp.round(rows / row_scales).astype(jnp.int8)
    if count < _MIN_ROWS:
        integers = jnp.pad(integers, ((0, _MIN_ROWS - count), (0, 0)))
    sums = _contract(integers, kernel.values, inputs, jnp.int32)[:count]
    product = sums.astype(jnp.float32) * row_scales * kernel.scales.reshape(-1)
    return product.reshape(*x.shape[:-1], -1)


def _contract(x: Array, values: Array, inputs: str, dtype: DTypeLike) -> Array:
    axes = (x.ndim - 1,), (0 if inputs == "rows" else 1,)
    return lax.dot_general(x, values, (axes, ((), ())), preferred_element_type=dtype)


def dequantise(array: Int8Array) -> Float[jax.Array, "..."]:
    """Returns the float32 value of an array."""
    return array.values.astype(jnp.float32) * array.scales
