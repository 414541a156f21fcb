"""Weights and images that are reproducible from their names, so golden files only store names and results."""

from __future__ import annotations

import zlib

import numpy as np


def seeded_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random weights or batch norm statistics, depending on `key`.

    Kernels are small enough for a deep network. With larger ones B7 is chaotic, and float32 differs from float64.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.replace("/", ".").rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("running_var", "moving_variance"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf in ("running_mean", "moving_mean", "bias", "beta"):
        return (0.1 * random.randn(*shape)).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.2 * random.randn(*shape)).astype(np.float32)
    torch_like = leaf == "weight"
    fan_in = np.prod(shape[1:]) if torch_like else np.prod(shape[:-1])
    return (np.sqrt(1 / fan_in) * random.randn(*shape)).astype(np.float32)


def seeded_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns a state dict of `seeded_array`s."""
    return {key: seeded_array(key, shape) for key, shape in shapes.items()}


def seeded_images(size: int) -> np.ndarray:
    """Returns two normalised images, float32 [2, size, size, 3]."""
    return np.random.RandomState(size).randn(2, size, size, 3).astype(np.float32)


def thinned(features: np.ndarray) -> np.ndarray:
    """Returns every 37th value of [batch, h, w, channels], which covers every cell and many channels."""
    return np.ravel(features)[::37]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference divided by the largest expected value."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())
