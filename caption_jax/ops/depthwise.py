"""Depthwise 2-D convolution: every channel with its own kernel.

No form reads across images, so a batch that is sharded over devices stays where it is: only the kernel's gradient, a
sum over the batch, needs a reduction.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from caption_jax.ops.materialise import materialised

Padding = Literal["same", "symmetric"]
Pads = tuple[tuple[int, int], tuple[int, int]]


def explicit_padding(height: int, width: int, kernel: int, stride: int, padding: Padding) -> Pads:
    """Returns the rows and columns of zeros to add: ((top, bottom), (left, right)).

    'same' is TensorFlow's rule (the output has ceil(size / stride) cells, an odd pixel of padding goes to the bottom
    and right); 'symmetric' is PyTorch's (kernel // 2 on every side).
    """
    if padding == "symmetric":
        side = (kernel // 2, kernel // 2)
        return side, side
    if padding != "same":
        raise ValueError(f"padding is {padding!r}; it must be 'same' or 'symmetric'")

    def one(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return one(height), one(width)


def depthwise_conv_reference(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels"],
    *,
    stride: int = 1,
    padding: Padding = "same",
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves every channel with its own square kernel (cross-correlation, as in every deep-learning library).

    Args:
        x: images.
        kernel: of each channel, cast to the dtype of `x`, as the result has it.
        stride: of both axes.
        padding: see `explicit_padding`.

    Raises:
        ValueError: a kernel that does not fit the channels, or an unknown padding.
    """
    return _grouped(x, kernel.astype(x.dtype), stride=stride, pads=_pads(x, kernel, stride, padding))


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels"],
    *,
    stride: int = 1,
    padding: Padding = "same",
) -> Float[Array, "batch out_height out_width channels"]:
    """`depthwise_conv_reference`; on a CPU, forwards and backwards, sums of shifted copies of the image.

    XLA's grouped convolution is the right form on an accelerator. On a CPU it takes many times as long as what it
    computes: a sum of shifted copies of the image, each multiplied by one row of weights. Measured, with the gradient:
    20. Sums are float32.
    """
    return _depthwise(x, kernel.astype(x.dtype), stride, _pads(x, kernel, stride, padding))


def _pads(x: Array, kernel: Array, stride: int, padding: Padding) -> Pads:
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != x.shape[-1]:
        raise ValueError(f"a depthwise kernel for {x.shape[-1]} channels is [k, k, {x.shape[-1]}], not {kernel.shape}")
    return explicit_padding(x.shape[1], x.shape[2], kernel.shape[0], stride, padding)


def _grouped(x: Array, kernel: Array, *, stride: int, pads: Pads) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted_sum, stride=stride, pads=pads),
        default=partial(_grouped, stride=stride, pads=pads),
    )


def _forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    def on_cpu(x: Array, kernel: Array) -> Array:
        return materialised(partial(_shifted_sum, stride=stride, pads=pads), x, kernel, witness=kernel)

    out = lax.platform_dependent(x, kernel, cpu=on_cpu, default=partial(_grouped, stride=stride, pads=pads))
    return out, (x, kernel)


def _backward(stride: int, pads: Pads, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=partial(_shifted_gradients, stride=stride, pads=pads),
        default=partial(_grouped_gradients, stride=stride, pads=pads),
    )


_depthwise.defvjp(_forward, _backward)


def _grouped_gradients(x: Array, kernel: Array, gradient: Array, *, stride: int, pads: Pads) -> tuple[Array, Array]:
    _, pullback = jax.vjp(partial(_grouped, stride=stride, pads=pads), x, kernel)
    return pullback(gradient)


def _shifted_sum(x: Array, kernel: Array, *, stride: int, pads: Pads) -> Array:
    (top, bottom), (left, right) = pads
    size = kernel.shape[0]
    rows = (x.shape[1] + top + bottom - size) // stride + 1
    columns = (x.shape[2] + left + right - size) // stride + 1
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(jnp.float32)
    weights = kernel.astype(jnp.float32)
    total = sum(
        padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride] * weights[i, j]
        for i in range(size)
        for j in range(size)
    )
    return total.astype(x.dtype)


def _shifted_gradients(x: Array, kernel: Array, gradient: Array, *, stride: int, pads: Pads) -> tuple[Array, Array]:
    to_input = partial(_input_gradient, shape=x.shape[1:3], stride=stride, pads=pads)
    return (
        materialised(to_input, gradient, kernel, witness=kernel).astype(x.dtype),
        _kernel_gradient(x, gradient, kernel.shape[0], stride, pads).astype(kernel.dtype),
    )


def _input_gradient(gradient: Array, kernel: Array, shape: tuple[int, int], stride: int, pads: Pads) -> Array:
    """The transposed convolution as shifted sums, one for each phase of the stride, interleaved at the end.

    Input row p reaches output row q through tap i where p + top = stride * q + i: so the rows p = stride * m + phase
    meet only every stride-th tap, and are a plain convolution of the output's gradient with those taps.
    """
    height, width = shape
    (top, _), (left, _) = pads
    size = kernel.shape[0]
    gradient = gradient.astype(jnp.float32)
    kernel = kernel.astype(jnp.float32)
    rows, columns = -(-height // stride), -(-width // stride)

    # Zeros all round, so that every shift below is a slice. An offset is the gradient's row minus m; it is at least
    # -((size - 1) // stride) and at most (stride - 1 + pad) // stride.
    before = (size - 1) // stride
    after_rows = max((stride - 1 + top) // stride + rows - gradient.shape[1], 0)
    after_columns = max((stride - 1 + left) // stride + columns - gradient.shape[2], 0)
    padded = jnp.pad(gradient, ((0, 0), (before, after_rows), (before, after_columns), (0, 0)))

    def one(row_phase: int, column_phase: int) -> Array:
        total = 0.0
        for i in range((row_phase + top) % stride, size, stride):
            for j in range((column_phase + left) % stride, size, stride):
                r = before + (row_phase + top - i) // stride
                c = before + (column_phase + left - j) // stride
                total = total + padded[:, r : r + rows, c : c + columns] * kernel[i, j]
        return total

    if stride == 1:
        return one(0, 0)
    phases = [jnp.stack([one(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    merged = jnp.stack(phases, axis=2)  # [batch, rows, row phase, columns, column phase, channels]
    merged = merged.reshape(gradient.shape[0], rows * stride, columns * stride, gradient.shape[3])
    return merged[:, :height, :width]


# Cells per side of the tiles below. XLA fuses a copy into what reads it at up to 15 places, and a loop that computes 15
# moving addresses is much slower than one over a copy: so a tile has at least 16 cells.
_TILE = 4


def _kernel_gradient(x: Array, gradient: Array, size: int, stride: int, pads: Pads) -> Array:
    """The sum over images and cells of (input under a tap) x (gradient), for every tap and channel.

    A loop over tiles of the output. What a tile needs of both arrays is copied, small enough to stay in cache, and the
    products of all its cells are added to the taps' sums in one fused loop: no reduction of XLA's, no array of
    products. Not over images, because the batch is what a mesh shards: each image has its own sums until the end, and
    devices reduce once.
    """
    down, across = (-(-cells // _TILE) for cells in gradient.shape[1:3])
    below, right = down * _TILE - gradient.shape[1], across * _TILE - gradient.shape[2]
    (top, bottom), (left, end) = pads
    x = jnp.pad(x, ((0, 0), (top, bottom + stride * below), (left, end + stride * right), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, below), (0, right), (0, 0)))
    images, channels, side = x.shape[0], x.shape[-1], stride * (_TILE - 1) + size

    def add_tile(step: Array, total: Array) -> Array:
        row, column = step // across * _TILE, step % across * _TILE
        pixels = lax.dynamic_slice(x, (0, stride * row, stride * column, 0), (images, side, side, channels))
        gradients = lax.dynamic_slice(gradient, (0, row, column, 0), (images, _TILE, _TILE, channels))
        pixels, gradients = pixels.astype(jnp.float32), gradients.astype(jnp.float32)
        return total + sum(
            pixels[:, stride * i : stride * i + size, stride * j : stride * j + size] * gradients[:, i, None, j, None]
            for i in range(_TILE)
            for j in range(_TILE)
        )

    sums = jnp.zeros((images, size, size, channels), jnp.float32)
    return jnp.sum(lax.fori_loop(0, down * across, add_tile, sums), axis=0)
