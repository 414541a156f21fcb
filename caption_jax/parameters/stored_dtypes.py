"""Dtypes in which weights are stored: float32, bfloat16, or 8-bit integers with a scale per output channel.

Only large arrays are converted: those named `kernel` or `embedding` in `params` with at least `MIN_ELEMENTS` elements.
They contain almost all of the memory. Biases, norms, statistics and small kernels remain float32.

A quantised array is stored as the dictionary `{"int8": values, "scales": scales}` in its place. Quantisation is
symmetric: the scale of an output channel is its largest magnitude / 127. The output channels of an embedding are its
rows, and those of a kernel its last axis. Batch norms need not be folded into kernels first: a factor per output
channel changes the scales, but not the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int8

from caption_jax.errors import ConfigError
from caption_jax.ops.int8_product import LEVELS, Int8Array, dequantise

PyTree = Any

STORED, FLOAT32, BFLOAT16, INT8 = "stored", "float32", "bfloat16", "int8"
CHOICES = (STORED, FLOAT32, BFLOAT16, INT8)  # "stored" is the dtype in the file
MIN_ELEMENTS = 4096

_KEYS = {"int8", "scales"}


def check_stored_dtype(name: str) -> None:
    """Raises ConfigError if a name is not one of `CHOICES`."""
    if name not in CHOICES:
        raise ConfigError(f"unknown weights {name!r}; expected one of {', '.join(CHOICES)}")


def find_stored_dtype(variables: PyTree) -> str:
    """Returns the dtype in which the large arrays of variables are stored: "float32", "bfloat16" or "int8"."""
    leaves = jax.tree.leaves(variables, is_leaf=_is_quantised)
    if any(map(_is_quantised, leaves)):
        return INT8
    return BFLOAT16 if any(leaf.dtype == jnp.bfloat16 for leaf in leaves) else FLOAT32


def convert_weights(variables: PyTree, dtype: str) -> PyTree:
    """Converts variables to the dtype in which they are to be stored.

    Args:
        variables: variables as NumPy arrays, stored in any dtype.
        dtype: one of `CHOICES`.

    Returns:
        NumPy arrays. They are the same objects if they already have the dtype.

    Raises:
        ConfigError: the dtype is unknown, or an array contains values that are not finite, which have no integers.
    """
    check_stored_dtype(dtype)
    if dtype in (STORED, find_stored_dtype(variables)):
        return variables
    variables = jax.tree.map(_to_float32, variables, is_leaf=_is_quantised)
    if dtype == FLOAT32:
        return variables
    convert = _store_quantised if dtype == INT8 else lambda path, array: array.astype(jnp.bfloat16)
    return {**variables, "params": _map_large(variables["params"], convert)}


def quantise(
    array: Float[np.ndarray, "..."], channel_axis: int
) -> tuple[Int8[np.ndarray, "..."], Float32[np.ndarray, "..."]]:
    """Rounds an array to 8-bit integers. The error of an element is at most half the scale of its channel.

    Args:
        array: finite values.
        channel_axis: axis of the output channels.

    Returns:
        The integers, and the scales, which have size 1 in all other axes. A channel of zeros has scale 1.
    """
    axes = tuple(axis for axis in range(array.ndim) if axis != channel_axis % array.ndim)
    largest = np.max(np.abs(array), axis=axes, keepdims=True).astype(np.float32)
    scales = np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)
    scales = np.where(scales > 0, scales, 1)  # the magnitude was so small that the division underflowed
    return np.clip(np.rint(array / scales), -LEVELS, LEVELS).astype(np.int8), scales


def restore(variables: PyTree) -> PyTree:
    """Returns variables for `apply` of a model; traced by `jax.jit`, so that weights are small until they are used.

    Quantised arrays are float32 in `params`, and also in the collection `int8`, as `Int8Array`s at the same paths. The
    modules that use this collection multiply integers, and XLA then removes the float32 array. All others work without
    change. Arrays in bfloat16 are cast to float32, and the model casts them to `config.dtype`.

    Args:
        variables: variables, stored in any dtype. Those in float32 are returned as they are.
    """
    stored = find_stored_dtype(variables)
    if stored == FLOAT32:
        return variables
    if stored == BFLOAT16:
        return jax.tree.map(_upcast, variables)
    params = jax.tree.map(_dequantise_node, variables["params"], is_leaf=_is_quantised)
    return {**variables, "params": params, "int8": _select_integers(variables["params"])}


def _map_large(tree: PyTree, convert: Callable[[str, np.ndarray], Any], path: str = "") -> PyTree:
    """Applies `convert(path, array)` to the large arrays of a tree."""
    if isinstance(tree, dict):
        return {key: _map_large(node, convert, f"{path}/{key}" if path else key) for key, node in tree.items()}
    is_large = path.split("/")[-1] in ("kernel", "embedding") and tree.ndim > 1 and tree.size >= MIN_ELEMENTS
    return convert(path, tree) if is_large else tree


def _select_integers(tree: PyTree) -> PyTree:
    """Returns a tree with only the quantised arrays."""
    selected = {}
    for key, node in tree.items():
        if _is_quantised(node):
            selected[key] = Int8Array(node["int8"], node["scales"])
        elif isinstance(node, dict) and (below := _select_integers(node)):
            selected[key] = below
    return selected


def _dequantise_node(node: Any) -> Any:
    return dequantise(Int8Array(node["int8"], node["scales"])) if _is_quantised(node) else node


def _is_quantised(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == _KEYS


def _store_quantised(path: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{path} contains values that are not finite, so it cannot be stored as int8: choose another checkpoint"
        )
    values, scales = quantise(array, 0 if path.split("/")[-1] == "embedding" else -1)
    return {"int8": values, "scales": scales}


def _to_float32(node: Any) -> np.ndarray:
    if not _is_quantised(node):
        return np.asarray(_upcast(node))
    return node["int8"].astype(np.float32) * node["scales"]


def _upcast(array: Any) -> Any:
    return array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array
