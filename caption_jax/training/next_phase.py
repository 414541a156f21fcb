"""Compilation of the training step of the next phase, while the devices run the current phase."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from caption_jax.runtime.cached_program import CachedUpdate

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


def _compile(update: Callable, arguments: tuple[PyTree, ...]) -> None:
    if isinstance(update, CachedUpdate):
        update.compile(*arguments)
    else:
        update.lower(*arguments).compile()  # a later call with such arguments reuses the compiled program


def _to_abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding, weak_type=array.aval.weak_type)
