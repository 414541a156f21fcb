"""The phases of unfreezing, and the compilation of the training step of the next phase during the current one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from absl import logging

from caption_jax.parameters.freezing import phases
from caption_jax.runtime.cached_program import CachedUpdate
from caption_jax.runtime.watchdog import Watchdog
from caption_jax.telemetry.progress import Display
from caption_jax.training.program import Program
from caption_jax.training.state import TrainState

PyTree = Any


class NextPhaseCompiler:
    """Compiles training steps in a background thread, so that the devices do not wait when parameters are unfrozen."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def start(self, update: Callable, *arguments: PyTree) -> None:
        """Starts compiling a jitted function for arguments of the same shapes and shardings as `arguments`."""
        abstract = jax.tree.map(_to_abstract, arguments)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="next-phase")
        self._job = self._thread.submit(_compile, update, abstract)

    def wait(self) -> None:
        """Waits for the compilation, and raises its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Waits for a running compilation, which XLA cannot cancel; its error no longer matters. Idempotent."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


def training_phases(
    program: Program, params: PyTree, step: int, compiler: NextPhaseCompiler, display: Display, watchdog: Watchdog
) -> Iterator[tuple[int, Callable]]:
    """Yields (last step, jitted training step) for each phase of unfreezing.

    After the first step of a phase, a background thread compiles the training step of the next one.

    Args:
        program: the program of the run.
        params: the parameters of the model.
        step: number of updates made so far.
        compiler: compiles the next step.
        display: shows the compilation.
        watchdog: paused during the compilation.
    """
    starts = phases(params, program.description.spec.optimizer.rules)
    ends = [*(start for start, _ in starts[1:]), program.steps]
    remaining = [
        (min(end, program.steps), frozen)
        for (start, frozen), end in zip(starts, ends, strict=True)
        if max(start, step) < min(end, program.steps)
    ]
    updates = [program.cached_update(frozen) for _, frozen in remaining]
    pairs = itertools.zip_longest(updates, updates[1:])
    for (end, frozen), (update, next_update) in zip(remaining, pairs, strict=True):
        logging.debug("steps up to %d: %d parameter arrays frozen", end, len(frozen))
        train_step = _begin_phase(compiler, update, next_update, watchdog)
        yield end, display.around_first_call(train_step, "compiling the training step")


def _begin_phase(
    compiler: NextPhaseCompiler, update: Callable, next_update: Callable | None, watchdog: Watchdog
) -> Callable:
    """Returns a training step that starts compiling `next_update` after its first call."""
    is_first = True

    def train_step(state: TrainState, batch: Any, constants: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        nonlocal is_first
        if not is_first:
            return update(state, batch, constants)
        is_first = False
        with watchdog.paused():
            compiler.wait()
            state, metrics = update(state, batch, constants)
        if next_update is not None:
            compiler.start(next_update, state, batch, constants)
        return state, metrics

    return train_step


def _compile(update: Callable, arguments: tuple[PyTree, ...]) -> None:
    if isinstance(update, CachedUpdate):
        update.compile(*arguments)
    else:
        update.lower(*arguments).compile()  # a later call with such arguments reuses the compiled program


def _to_abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding, weak_type=array.aval.weak_type)
