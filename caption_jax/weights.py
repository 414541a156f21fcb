"""A trained model's weights for inference, read from Orbax's checkpoint once and from one plain file after that.

Orbax and its hundreds of small arrays were a third of a start that captions one image. So `load_weights` leaves what
it has read in `<workdir>/weights/<best or last>.safetensors`, with a note of the checkpoint it is of. The file is a
copy: it may be deleted at any time, and is made anew when there is another checkpoint.
"""

from __future__ import annotations

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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A model's variables (`params`, `batch_stats`) and the step they were taken at."""

    variables: PyTree
    step: int


def load_weights(workdir: str | os.PathLike[str], which: str = "best") -> Weights:
    """Reads a model onto the first local device, from the plain file where it is of the newest checkpoint.

    Args:
        workdir: a run's workdir; one on a bucket has no plain file.
        which: "best" (by validation CIDEr-D; the last one if nothing was evaluated yet) or "last".

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: `which` is neither of the two.
    """
    newest = _newest(Path(workdir, "checkpoints"), which)
    file = Path(workdir, "weights", f"{which}.safetensors")
    variables = _read(file, _note(newest)) if newest else None
    if newest and variables:
        step = int(newest.name)
    else:
        from caption_jax.checkpoints import read_weights  # Orbax: not needed by a start that finds the file

        read = read_weights(workdir, which)
        variables, step = read.variables, read.step
        if newest and newest.name == str(step):  # or a run has just saved another one
            _keep(file, variables, _note(newest))
    return Weights(jax.device_put(variables, jax.local_devices()[0]), step)


def fingerprint(variables: PyTree) -> str:
    """SHA-256, in hexadecimal, of the names, shapes, types and values of all arrays of a tree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def _newest(checkpoints: Path, which: str) -> Path | None:
    """The folder of the newest checkpoint of a local workdir; whether it is whole is for Orbax to say."""
    for name in ("best", "last") if which == "best" else ("last",):
        if steps := [path for path in (checkpoints / name).glob("*") if path.name.isdigit()]:
            return max(steps, key=lambda path: int(path.name))
    return None


def _note(checkpoint: Path) -> str:
    """What tells a checkpoint from another one, of the same step too."""
    return f"{checkpoint.parent.name}/{checkpoint.name} {checkpoint.stat().st_mtime_ns}"


def _read(file: Path, note: str) -> PyTree | None:
    """The variables in a plain file; None where there is none, or where it is of another checkpoint."""
    try:
        with safe_open(file, "numpy") as opened:
            if (opened.metadata() or {}).get("checkpoint") != note:
                return None
            return _nested({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118, no dict
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read and is made again (%s)", file, error)
        return None


def _keep(file: Path, variables: PyTree, note: str) -> None:
    """Writes the plain file, whole or not at all; a workdir that cannot be written to does without."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(exist_ok=True)
        part.write_bytes(save(_flat(variables), {"checkpoint": note}))
        part.replace(file)
    except (SafetensorError, OSError) as error:
        log.info("the weights cannot be kept in a plain file: %s", error)


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
    """Arrays in dictionaries of dictionaries, by names joined with slashes."""
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _nested(arrays: dict[str, np.ndarray]) -> PyTree:
    """The reverse of `_flat`."""
    tree: PyTree = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        functools.reduce(lambda branch, key: branch.setdefault(key, {}), above, tree)[last] = array
    return tree
