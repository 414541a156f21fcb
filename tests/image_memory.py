"""Peak memory and time of decoding an image in a process of its own.

python -m image_memory FILE ACTION

prints a JSON object with the outcome. ACTION is "decode", "thumbnail", or "decode N" to decode N copies in N threads.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = 224


@dataclass(frozen=True)
class Outcome:
    """How decoding ended.

    Attributes:
        error: the message, or "" if the image was decoded.
        memory_mb: peak of the memory of the process, in MB, minus that after it has decoded a small image.
        seconds: wall time.
    """

    error: str
    memory_mb: float
    seconds: float


def decode_in_child(path: Path, action: str = "decode", *, timeout: float = 120) -> Outcome:
    """Decodes an image file in a child process. Fails if the process is killed or aborts."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "image_memory", str(path), *action.split()]
    process = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert process.returncode == 0, process.stderr
    assert not process.stderr, process.stderr  # neither warnings nor messages of libraries
    return Outcome(**json.loads(process.stdout))


def peak_mb() -> float:
    """Returns the peak of the memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` of Linux includes the parent process before `exec`
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(path: str, action: str, copies: str = "1") -> None:
    """Runs in the child process."""
    import numpy as np

    from input_pipeline.images import ImageError, decode_image, make_thumbnail

    decode_image(np.zeros((300, 300, 3), np.uint8), SIZE)  # loads libraries
    before, start = peak_mb(), time.perf_counter()

    def work(_: int) -> str:
        try:
            decode_image(path, SIZE) if action == "decode" else make_thumbnail(path, 400)
        except ImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(int(copies)) as pool:
        errors = set(pool.map(work, range(int(copies))))
    (error,) = errors
    print(json.dumps({"error": error, "memory_mb": peak_mb() - before, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
