"""A model's weights, and the plain file that holds a copy of them: named arrays, in the safetensors format."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

PyTree = Any

# Folders of checkpoints, of which the first counts that holds one: the last serves as the best if none was evaluated.
CHOICES = {"best": ("best", "last"), "last": ("last",)}

log = logging.getLogger(__name__)


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


def read_plain_file(file: Path, note: str) -> PyTree | None:
    """The variables in a file that was written with this note; None where there is none."""
    try:
        with safe_open(file, "numpy") as opened:
            if (opened.metadata() or {}).get("note") != note:
                return None
            return nested({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118, no dict
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read and is made again (%s)", file, error)
        return None


def write_plain_file(file: Path, variables: PyTree, note: str) -> None:
    """Writes variables, whole or not at all; where that is not possible, says so and goes on."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(exist_ok=True)
        part.write_bytes(save(flat(variables), {"note": note}))  # only their owner can read what save_file makes
        part.replace(file)
    except (SafetensorError, OSError) as error:
        log.warning("the weights cannot be kept in %s for the next start: %s", file, error)
        with contextlib.suppress(OSError):
            part.unlink()


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
