"""Bilinear crop and resize of a window of each image, the geometric part of augmentation."""

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

    Pixel centres are at half-integer coordinates, and pixels at the edge are repeated beyond it.

    Args:
        pixels: images.
        vertical: start and extent of the window as fractions of the height; a negative extent flips the window.
        horizontal: start and extent of the window as fractions of the width, likewise.
    """
    _, height, width, _ = pixels.shape

    def resample_image(image, vertical, horizontal):
        grid = jnp.meshgrid(_sources(*vertical, height), _sources(*horizontal, width), indexing="ij")
        channels = [map_coordinates(image[..., c], grid, order=1, mode="nearest") for c in range(image.shape[-1])]
        return jnp.stack(channels, axis=-1)

    return jax.vmap(resample_image)(pixels, vertical, horizontal)


def resample(pixels: Pixels, vertical: Window, horizontal: Window) -> Pixels:
    """`resample_reference`, one axis at a time: gathers on a CPU (speedup: 4.2), two matrix products elsewhere."""
    rows = _taps(*vertical, pixels.shape[1])
    columns = _taps(*horizontal, pixels.shape[2])
    return jax.lax.platform_dependent(pixels, rows, columns, cpu=_gather, default=_multiply)


def _sources(start: Array, extent: Array, size: int) -> Array:
    """Source coordinate of each output pixel."""
    centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.clip((start + extent * centres) * size - 0.5, 0, size - 1)


def _taps(start: Array, extent: Array, size: int) -> Taps:
    """Lower source index of each output pixel, and the interpolation weight of the next source pixel."""
    source = _sources(start[:, None], extent[:, None], size)
    lower = jnp.clip(jnp.floor(source), 0, max(size - 2, 0))
    return lower.astype(jnp.int32), source - lower


def _gather(pixels: Pixels, rows: Taps, columns: Taps) -> Pixels:
    def interpolate(image, taps, axis):
        lower, weight = taps
        weight = weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        upper = jnp.minimum(lower + 1, image.shape[axis] - 1)
        # Indices are in bounds by construction; checking them would cost more than the interpolation itself.
        index = (slice(None),) * axis
        low = image.at[(*index, lower)].get(mode="promise_in_bounds")
        high = image.at[(*index, upper)].get(mode="promise_in_bounds")
        return low * (1 - weight) + high * weight

    return jax.vmap(lambda image, r, c: interpolate(interpolate(image, r, 0), c, 1))(pixels, rows, columns)


def _multiply(pixels: Pixels, rows: Taps, columns: Taps) -> Pixels:
    def matrix(taps, size):
        lower, weight = taps
        distance = jnp.arange(size) - (lower + weight)[..., None]
        return jnp.maximum(1 - jnp.abs(distance), 0)

    row_matrix = matrix(rows, pixels.shape[1])
    column_matrix = matrix(columns, pixels.shape[2])
    pixels = jnp.einsum("bsh,bhwc->bswc", row_matrix, pixels)
    return jnp.einsum("btw,bswc->bstc", column_matrix, pixels)
