"""A model's weights on the host: as nested dictionaries, and as the bytes of a safetensors file of named arrays."""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load, save

from input_pipeline.files import is_on_bucket

PyTree = Any

# Folders of checkpoints, of which the first counts that holds one: the last serves as the best if none was evaluated.
CHOICES = {"best": ("best", "last"), "last": ("last",)}


@dataclass(frozen=True)
class Weights:
    """A model's variables (`params`, `batch_stats`) and the step they were taken at."""

    variables: PyTree
    step: int


def fingerprint(variables: PyTree) -> str:
    """SHA-256, in hexadecimal, of the names, shapes, types and values of all arrays of a tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def host_copy(variables: PyTree) -> PyTree:
    """NumPy copies of arrays, which stay as they are when the device reuses its buffers.

    An array may be sharded, as long as the devices of this process hold all of it between them: so `make_mesh` lays out
    parameters, also where there are several processes. Nothing is sent from one to another.
    """
    return jax.tree.map(_whole, variables)


def _whole(array: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.array(array)
    whole, filled = np.empty(array.shape, array.dtype), np.zeros(array.shape, bool)
    for shard in array.addressable_shards:
        whole[shard.index], filled[shard.index] = shard.data, True
    if not filled.all():
        raise RuntimeError(f"this process holds only a part of an array of shape {array.shape}: {array.sharding}")
    return whole


def to_safetensors(variables: PyTree) -> bytes:
    """The content of a safetensors file: one array per leaf, named by its path with slashes."""
    return save(flat(variables))


def read_safetensors(file: epath.Path) -> tuple[PyTree, str]:
    """Reads what `to_safetensors` returned; of a local file, it is hashed while its arrays are copied.

    Returns:
        The variables, and the SHA-256 of the file in hexadecimal.

    Raises:
        OSError: the file cannot be read.
        safetensors.SafetensorError: it is of another format or incomplete.
    """
    if is_on_bucket(file):
        content = file.read_bytes()
        return nested(load(content)), hashlib.sha256(content).hexdigest()
    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(_sha256, file)
        with safe_open(file, "numpy") as opened:
            variables = nested({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118, no dict
        return variables, digest.result()


def _sha256(file: epath.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def flat(tree: PyTree) -> dict[str, np.ndarray]:
    """Arrays in dictionaries of dictionaries, by names joined with slashes."""
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf, order="C") for path, leaf in leaves}


def nested(arrays: dict[str, np.ndarray]) -> PyTree:
    """The reverse of `flat`, without dictionaries that hold nothing."""
    tree: PyTree = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        functools.reduce(lambda branch, key: branch.setdefault(key, {}), above, tree)[last] = array
    return tree
