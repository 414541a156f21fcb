"""`python tests/faulty_main.py ...` is main.py with a fault, which the environment variable FAULT names.

Faults that act at one point of a run first create the file `fault` in the workdir, so that a test can wait for it.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "fault"


def get_workdir() -> Path:
    return Path(next(argument.partition("=")[2] for argument in sys.argv if argument.startswith("--workdir=")))


def has_occurred(workdir: Path) -> bool:
    """A condition for `RunLauncher.stop_when`: the fault has occurred."""
    return (workdir / MARK).exists()


def slow_evaluation() -> None:
    """Each batch of an evaluation takes a second."""
    from caption_jax.evaluation.split_evaluator import SplitEvaluator

    put = SplitEvaluator._put_on_devices

    def put_slowly(self: SplitEvaluator, batch: Any) -> Any:
        (get_workdir() / MARK).touch()
        time.sleep(1)
        return put(self, batch)

    SplitEvaluator._put_on_devices = put_slowly


def slow_save() -> None:
    """Each checkpoint takes at least a minute."""
    from caption_jax.runs.checkpoints import Checkpoints

    def wait(self: Checkpoints, *_: Any) -> None:
        (get_workdir() / MARK).touch()
        time.sleep(60)

    Checkpoints._add_checksums = wait


def slow_compilation() -> None:
    """The first compilation of a training step blocks the main thread in C for a minute."""
    import ctypes

    from caption_jax.runtime import cached_program

    def compile_slowly(*_: Any) -> None:
        (get_workdir() / MARK).touch()
        library = ctypes.CDLL(None)
        for _second in range(60):  # a signal ends `sleep` early
            library.usleep(999_999)

    cached_program.CachedUpdate.__call__ = compile_slowly


def slow_pixels() -> None:
    """Each image takes a second to decode."""
    from input_pipeline import images

    load: Callable = images.Preprocessing.load

    def load_slowly(self: images.Preprocessing, *arguments: Any, **options: Any) -> Any:
        get_workdir().mkdir(parents=True, exist_ok=True)
        (get_workdir() / MARK).touch()
        time.sleep(1)
        return load(self, *arguments, **options)

    images.Preprocessing.load = load_slowly


def hanging_input() -> None:
    """Reading the batch of the ninth step never ends."""
    from input_pipeline.batches import TrainBatches

    get_next = TrainBatches.__next__

    def hang(self: TrainBatches) -> Any:
        if self._consumed >= 8 * self.batch_size:
            (get_workdir() / MARK).touch()
            time.sleep(600)
        return get_next(self)

    TrainBatches.__next__ = hang


FAULTS = {fault.__name__: fault for fault in (slow_evaluation, slow_save, slow_compilation, slow_pixels, hanging_input)}


def main() -> None:
    """Runs main.py with the fault."""
    sys.path.insert(0, str(ROOT))
    from caption_jax.cli import platform_setup

    set_up_platform = platform_setup.set_up_platform

    def set_up_with_fault(options: Any) -> None:
        set_up_platform(options)
        FAULTS[os.environ["FAULT"]]()

    platform_setup.set_up_platform = set_up_with_fault
    sys.argv = [str(ROOT / "main.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
