"""`python tests/faulty_main.py ...` is main.py with a fault, which the environment variable FAULT names.

Faults that act at one point of a run first create the file `fault` in the workdir, so that a test can wait for it.
"""

from __future__ import annotations

import itertools
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


def _delay_batch(seconds: float) -> None:
    """Makes the ninth batch of a process take some seconds."""
    from input_pipeline.batches import TrainBatches

    get_next, count = TrainBatches.__next__, itertools.count(1)

    def hang(self: TrainBatches) -> Any:
        if next(count) == 9:
            (get_workdir() / MARK).touch()
            time.sleep(seconds)
        return get_next(self)

    TrainBatches.__next__ = hang


def hanging_input() -> None:
    """Reading the batch of the ninth step does not end."""
    _delay_batch(600)


def slow_input() -> None:
    """Reading the batch of the ninth step takes six seconds."""
    _delay_batch(6)


def hanging_callback() -> None:
    """A callback to the host in step 15 does not end."""
    import jax

    from caption_jax.training.step import TrainStep

    call = TrainStep.__call__

    def hang(step: Any) -> None:
        if step == 14:
            time.sleep(600)

    def call_with_callback(self: TrainStep, state: Any, *arguments: Any) -> Any:
        jax.debug.callback(hang, state.step, ordered=False)
        return call(self, state, *arguments)

    TrainStep.__call__ = call_with_callback
    _disable_program_cache()


def nan_gradients() -> None:
    """The gradients of steps 4, 5 and 12 are NaN, but their losses are finite."""
    import jax
    import jax.numpy as jnp

    from caption_jax.training.step import TrainStep

    compute = TrainStep._apply_optimizer

    def apply_with_fault(self: TrainStep, state: Any, gradients: Any, frozen: Any) -> Any:
        is_faulty = jnp.isin(state.step + 1, jnp.array([4, 5, 12]))
        gradients.update(jax.tree.map(lambda gradient: jnp.where(is_faulty, jnp.nan, gradient), dict(gradients)))
        return compute(self, state, gradients, frozen)

    TrainStep._apply_optimizer = apply_with_fault
    _disable_program_cache()


def _disable_program_cache() -> None:
    """Traces programs in each process, because the cache does not know about faults."""
    from caption_jax.training.program import Program

    Program.cached_update = Program.update


FAULTS = {
    fault.__name__: fault
    for fault in (
        slow_evaluation,
        slow_save,
        slow_compilation,
        slow_pixels,
        slow_input,
        hanging_input,
        hanging_callback,
        nan_gradients,
    )
}


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
