"""`python tests/restoring_main.py ...` is main.py, which also writes hashes of the arrays that it restores."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def get_path(folder: Path, process: int) -> Path:
    """Returns the file with the hashes of a process."""
    return folder / f"restored_{process}.json"


def hash_bytes(content: bytes) -> str:
    """Returns the hash of some bytes."""
    return hashlib.sha256(content).hexdigest()


def hash_array(array: Any) -> str:
    """Returns the hash of the bytes of an array."""
    return hash_bytes(np.asarray(array).tobytes())


def main() -> None:
    """Runs main.py with the arguments of this process."""
    sys.path.insert(0, str(ROOT))
    import jax
    from jax.experimental import multihost_utils

    from caption_jax.runs.checkpoints import Checkpoints, RestoredState

    restore = Checkpoints.restore

    def restore_and_report(checkpoints: Checkpoints, *templates: Any) -> RestoredState | None:
        restored = restore(checkpoints, *templates)
        if restored is not None:
            trees = {"weights": restored.weights, "train": restored.train}
            arrays = multihost_utils.process_allgather(trees, tiled=True)
            hashes = {
                jax.tree_util.keystr(path, simple=True, separator="/"): hash_array(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
            }
            content = {"step": restored.step, "arrays": hashes}
            get_path(Path(os.environ["RESTORED_FOLDER"]), jax.process_index()).write_text(json.dumps(content))
        return restored

    Checkpoints.restore = restore_and_report
    sys.argv = [str(ROOT / "main.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
