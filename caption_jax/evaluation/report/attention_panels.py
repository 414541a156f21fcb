"""Attention maps: one copy of the image per word, which is bright where the decoder attended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


@dataclass(frozen=True)
class AttentionPanel:
    """The image as seen by the decoder when it predicted a word.

    Attributes:
        word: the word.
        pixels: the image, bright where the decoder attended.
        vector_fraction: fraction of attention on the image vector; None if the memory has no image vector.
    """

    word: str
    pixels: UInt8[np.ndarray, "height width 3"]
    vector_fraction: float | None

    @property
    def title(self) -> str:
        """The word, followed by the fraction of attention on the image vector, if there is one."""
        return self.word if self.vector_fraction is None else f"{self.word} ({self.vector_fraction:.0%} vector)"


def attention_panels(
    image: UInt8[np.ndarray, "height width 3"],
    words: Sequence[str],
    attention: Float[np.ndarray, "words memory"],
    *,
    grid: tuple[int, int] | None = None,
) -> list[AttentionPanel]:
    """Returns a panel per word, each normalised to its maximum.

    Args:
        image: the input of the encoder, possibly with a different aspect ratio.
        words: words of the caption, or a subset of them.
        attention: one row per word, with the grid cells in row-major order, optionally followed by the image vector.
            Rows do not have to sum to one.
        grid: (rows, columns) of the grid; square by default.

    Raises:
        ValueError: the memory positions do not form the grid, or the number of rows differs from the number of words.
    """
    attention = np.asarray(attention, np.float64)
    if not len(words):
        return []
    if attention.ndim != 2 or len(words) != len(attention):
        raise ValueError(f"attention for {len(words)} words must be [words, memory], got shape {attention.shape}")
    (rows, columns), has_vector = _get_grid_shape(attention.shape[1], grid)
    panels = []
    for word, weights, total in zip(words, attention, attention.sum(axis=1), strict=True):
        vector_fraction = float(weights[-1] / max(total, 1e-12)) if has_vector else None
        cells = weights[: rows * columns].reshape(rows, columns)
        panels.append(AttentionPanel(word, _darken_unattended(np.asarray(image, np.uint8), cells), vector_fraction))
    return panels


def _get_grid_shape(length: int, grid: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Returns (rows, columns) of the grid, and whether an image vector follows it in a memory of `length` positions."""
    candidates = [grid] if grid else [(math.isqrt(n), math.isqrt(n)) for n in (length, length - 1) if n]
    for rows, columns in candidates:
        if length - rows * columns in (0, 1):
            return (rows, columns), length > rows * columns
    expected = f"a grid of {grid}" if grid else "a square grid"
    raise ValueError(f"{length} memory positions do not form {expected}, with or without an image vector")


def _darken_unattended(
    image: UInt8[np.ndarray, "height width 3"], weights: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Darkens and desaturates the image where the weights are low."""
    height, width = image.shape[:2]
    weights = weights / max(weights.max(), 1e-12)
    upsampled = Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    opacity = np.clip(np.asarray(upsampled), 0.0, 1.0)[..., None]
    pixels = image.astype(np.float32)
    background = 0.25 * pixels.mean(axis=-1, keepdims=True)
    return np.clip(background + opacity * (pixels - background), 0, 255).astype(np.uint8)
