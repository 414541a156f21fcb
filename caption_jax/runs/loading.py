"""A trained model's weights for inference, read from Orbax's checkpoint once and from one plain file after that.

Orbax and its hundreds of small arrays were a third of a start that captions one image. So `load_weights` leaves what
it has read in `<workdir>/weights/<best or last>.safetensors`, with a note of the checkpoint that it is of. The file is
a copy: it may be deleted at any time, and is made anew when there is another checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import jax

from caption_jax.runs.weights import CHOICES, Weights, flat, nested, read_plain_file, write_plain_file


class _Checkpoint(NamedTuple):
    step: int
    note: str  # tells it from any other, of the same step too


def load_weights(workdir: str | os.PathLike[str], which: str = "best") -> Weights:
    """Reads a model onto the first local device, from the plain file where it is of the newest checkpoint.

    Args:
        workdir: a run's workdir; one on a bucket has no plain file.
        which: "best" (by validation CIDEr-D; the last one if nothing was evaluated yet) or "last".

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: `which` is neither of the two.
    """
    file, newest = Path(workdir, "weights", f"{which}.safetensors"), _newest(Path(workdir, "checkpoints"), which)
    if newest and (variables := read_plain_file(file, newest.note)):
        step = newest.step
    else:
        from caption_jax.runs.checkpoints import read_weights  # Orbax: not needed by a start that finds the file

        read = read_weights(workdir, which)
        variables, step = nested(flat(read.variables)), read.step  # the tree that the file gives
        if newest and newest.step == step:  # or a run has just saved another one
            write_plain_file(file, variables, newest.note)
    return Weights(jax.device_put(variables, jax.local_devices()[0]), step)


def _newest(checkpoints: Path, which: str) -> _Checkpoint | None:
    """The newest checkpoint of a local workdir, as it is now; whether it is whole is for Orbax to say."""
    for name in CHOICES.get(which, ()):
        if steps := [int(path.name) for path in (checkpoints / name).glob("*") if path.name.isdigit()]:
            folder = checkpoints / name / str(max(steps))
            try:
                return _Checkpoint(max(steps), f"{name}/{folder.name} {folder.stat().st_mtime_ns}")
            except FileNotFoundError:  # a run that goes on has just deleted it
                return None
    return None
