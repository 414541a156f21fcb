"""Model weights on the host, as nested dictionaries and in the safetensors format."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from caption_jax.errors import ConfigError
from caption_jax.specs.renamed_keys import RENAMED_MODULES
from input_pipeline.files import is_on_bucket

PyTree = Any

# Checkpoint folders in order of preference. Before the first evaluation, the last checkpoint is used as the best.
CHECKPOINT_CHOICES = {"best": ("best", "last"), "last": ("last",)}

# Names of dtypes in safetensors, whose function for NumPy does not read bfloat16 from memory.
_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def check_choice(which: str) -> None:
    """Raises ConfigError if a checkpoint is neither "best" nor "last" nor a step."""
    if which not in CHECKPOINT_CHOICES and not (which.isascii() and which.isdigit()):
        raise ConfigError(f"unknown checkpoint {which!r}; expected 'best', 'last' or a step")


@dataclass(frozen=True)
class Weights:
    """Model variables (`params`, `batch_stats`) and their training step."""

    variables: PyTree
    step: int


def fingerprint(variables: PyTree) -> str:
    """Returns the SHA-256 hex digest of the paths, shapes, dtypes and values of all arrays in a pytree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def host_copy(variables: PyTree) -> PyTree:
    """Copies arrays to NumPy, so that the device buffers may be reused.

    Arrays may be sharded if this process can address all shards. `make_mesh` ensures this for parameters even if there
    are several processes, so no communication is needed.
    """
    return jax.tree.map(_to_host, variables)


def _to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.array(array)
    result, filled = np.empty(array.shape, array.dtype), np.zeros(array.shape, bool)
    for shard in array.addressable_shards:
        result[shard.index], filled[shard.index] = shard.data, True
    if not filled.all():
        raise RuntimeError(f"this process holds only a part of an array of shape {array.shape} with {array.sharding}")
    return result


def to_safetensors(variables: PyTree) -> bytes:
    """Serialises variables to safetensors, where the name of an array is its path joined with slashes."""
    return save(flatten_arrays(variables))


def rename_modules(tree: PyTree, names: Mapping[str, str]) -> PyTree:
    """Returns a pytree of dictionaries and tuples with some dictionary keys renamed."""
    if isinstance(tree, dict):
        return {names.get(key, key): rename_modules(value, names) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [rename_modules(value, names) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def read_safetensors(file: epath.Path) -> tuple[PyTree, str]:
    """Reads a file in the format of `to_safetensors`. Local files are hashed in parallel with reading.

    Returns:
        The variables, and the SHA-256 hex digest of the file.

    Raises:
        OSError: the file cannot be read.
        safetensors.SafetensorError: the file has another format, is truncated, or has arrays of an unsupported dtype.
    """
    if is_on_bucket(file):
        content = file.read_bytes()
        arrays = {name: _view_as_array(**entry) for name, entry in deserialize(content)}
        return _rename_former_modules(unflatten_arrays(arrays)), hashlib.sha256(content).hexdigest()
    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(sha256_of_file, file)
        with safe_open(file, "numpy") as opened:  # has `keys`, but is not a dictionary
            variables = unflatten_arrays({name: _read_tensor(opened, name) for name in opened.keys()})  # noqa: SIM118
        return _rename_former_modules(variables), digest.result()


def _read_tensor(opened: safe_open, name: str) -> np.ndarray:
    _check_dtype(opened.get_slice(name).get_dtype())
    return opened.get_tensor(name)


def _view_as_array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    _check_dtype(dtype)
    return np.frombuffer(data, _SAFETENSORS_DTYPES[dtype]).reshape(shape)


def _check_dtype(dtype: str) -> None:
    if dtype not in _SAFETENSORS_DTYPES:
        raise SafetensorError(f"unsupported dtype {dtype}")


def _rename_former_modules(variables: PyTree) -> PyTree:
    return rename_modules(variables, RENAMED_MODULES)


def sha256_of_file(file: epath.Path) -> str:
    """Returns the SHA-256 hex digest of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def flatten_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Flattens nested dictionaries of arrays; keys are joined with slashes."""
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf, order="C") for path, leaf in leaves}


def unflatten_arrays(arrays: dict[str, np.ndarray]) -> PyTree:
    """The inverse of `flatten_arrays`, except that empty dictionaries are not restored."""
    tree: PyTree = {}
    for name, array in arrays.items():
        *parents, key = name.split("/")
        functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[key] = array
    return tree
