"""main.py, in which the disk of the process FULL_DISK_PROCESS is full from the second checkpoint on."""

from __future__ import annotations

import errno
import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = "/scratch/cache/block_7.npy"
MESSAGE = f"{FILE}: {os.strerror(errno.ENOSPC)}"


def main() -> None:
    """Runs main.py with the arguments of this process."""
    sys.path.insert(0, str(ROOT))
    from caption_jax.runs.checkpoints import Checkpoints

    save = Checkpoints.save

    def fail(checkpoints: Checkpoints, step: int, *arguments: Any) -> None:
        if step > 5 and os.environ["JAX_PROCESS_ID"] == os.environ["FULL_DISK_PROCESS"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), FILE)
        save(checkpoints, step, *arguments)

    Checkpoints.save = fail
    sys.argv = [str(ROOT / "main.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
