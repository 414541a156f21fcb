"""An image lit up where the decoder attended, once per word."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def attention_panels(
    image: UInt8[np.ndarray, "height width 3"],
    words: Sequence[str],
    attention: Float[np.ndarray, "words slots"],
    *,
    grid: tuple[int, int] | None = None,
) -> list[tuple[str, UInt8[np.ndarray, "height width 3"]]]:
    """Returns a title and a picture for each word: the image, bright where the decoder attended while predicting it.

    Each picture is scaled to its own brightest cell. If a slot for the image's vector follows the grid in the memory,
    the title shows the fraction of attention that went to it.

    Args:
        image: as the encoder saw it, or the same view with another aspect ratio.
        words: the caption's words, or some of them.
        attention: a row per word: the grid's cells in row-major order, then the vector if there is one. Rows need not
            sum to one.
        grid: (rows, columns) of cells; square by default.

    Raises:
        ValueError: the slots do not form the grid, or words and rows differ in number.
    """
    attention = np.asarray(attention, np.float64)
    if not len(words):
        return []
    if attention.ndim != 2 or len(words) != len(attention):
        raise ValueError(f"{len(words)} words need attention [words, slots], not of shape {attention.shape}")
    (rows, columns), has_vector = _grid_shape(attention.shape[1], grid)
    panels = []
    for word, weights, total in zip(words, attention, attention.sum(axis=1), strict=True):
        title = f"{word}  ({weights[-1] / max(total, 1e-12):.0%} vector)" if has_vector else word
        cells = weights[: rows * columns].reshape(rows, columns)
        panels.append((title, _spotlight(np.asarray(image, np.uint8), cells)))
    return panels


def _grid_shape(slots: int, grid: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """The (rows, columns) of the grid, and whether a slot for a vector follows it."""
    candidates = [grid] if grid else [(math.isqrt(n), math.isqrt(n)) for n in (slots, slots - 1) if n]
    for rows, columns in candidates:
        if slots - rows * columns in (0, 1):
            return (rows, columns), slots > rows * columns
    raise ValueError(f"{slots} slots of attention are no grid of {grid or 'square shape'}, with or without a vector")


def _spotlight(
    image: UInt8[np.ndarray, "height width 3"], weights: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Darkens the image to grey except where the weights are high."""
    height, width = image.shape[:2]
    weights = weights / max(weights.max(), 1e-12)
    smooth = Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(smooth), 0.0, 1.0)[..., None]
    pixels = image.astype(np.float32)
    dark = 0.25 * pixels.mean(axis=-1, keepdims=True)
    return np.clip(dark + light * (pixels - dark), 0, 255).astype(np.uint8)
