"""Reproducible random weights and images, so that golden files need to store only their names and shapes."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np


def seeded_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random weights or batch norm statistics, depending on the last part of `key`.

    The variance of a kernel is 1 / fan-in. With a larger variance, rounding errors grow through the layers of B7, and
    float32 results differ from float64 results.
    """
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.replace("/", ".").rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("running_var", "moving_variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if leaf in ("running_mean", "moving_mean", "bias", "beta"):
        return (0.1 * rng.randn(*shape)).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.2 * rng.randn(*shape)).astype(np.float32)
    is_torch = leaf == "weight"
    fan_in = np.prod(shape[1:]) if is_torch else np.prod(shape[:-1])
    return (np.sqrt(1 / fan_in) * rng.randn(*shape)).astype(np.float32)


def seeded_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the `seeded_array` of each name and shape."""
    return {key: seeded_array(key, shape) for key, shape in shapes.items()}


def seeded_images(size: int) -> np.ndarray:
    """Returns two normalised images, float32 [2, size, size, 3]."""
    return np.random.RandomState(size).randn(2, size, size, 3).astype(np.float32)


def subsample(features: np.ndarray) -> np.ndarray:
    """Returns every 37th value of features [batch, h, w, channels], which covers all positions and many channels."""
    return np.ravel(features)[::37]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference divided by the largest expected value."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def get_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the state dict of a torch module by name."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def load_seeded_weights(module: Any) -> None:
    """Replaces the weights of a torch module with `seeded_weights`."""
    import torch

    weights = seeded_weights(get_shapes(module))
    module.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
