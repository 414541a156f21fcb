"""Search for the largest batch that fits in the memory of a chip, with few compilations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One compilation of the search.

    Attributes:
        images: images per chip.
        memory: bytes of memory, or None if the compiler ran out of memory.
    """

    images: int
    memory: int | None


def find_largest_batch(
    measure_memory: Callable[[int], int | None], first: Trial, fixed: int, unit: int, limit: float, compilations: int
) -> list[Trial]:
    """Searches for the largest batch that fits, assuming that memory grows about linearly with the batch size.

    Each guess is the batch size at which memory reaches the limit, extrapolated linearly from the largest batch that is
    known to fit. If this is outside the current bounds, the guess is their midpoint.

    Args:
        measure_memory: compiles the program for a number of images and returns its memory, or None if it does not fit.
        first: a batch that has already been compiled.
        fixed: approximate bytes that do not depend on the batch size.
        unit: the batch size must be a multiple of this.
        limit: bytes of memory available.
        compilations: maximum number of calls to `measure_memory`.

    Returns:
        All trials, including `first`. The largest batch among them that fits is the largest possible one if the next
        multiple of `unit` was also tried.
    """
    trials = [first]
    for _ in range(compilations):
        fitting = [trial for trial in trials if fits(trial, limit)]
        low = max((trial.images for trial in fitting), default=0)
        high = min((trial.images for trial in trials if not fits(trial, limit)), default=None)
        if fitting:
            best = max(fitting, key=lambda trial: trial.images)
            guess = int(best.images * (limit - fixed) / max(best.memory - fixed, 1))
        else:
            guess = high // 2
        guess = guess // unit * unit
        if high is not None and not low < guess < high:
            guess = (low + high) // 2 // unit * unit
        if guess <= low:
            break
        trials.append(Trial(guess, measure_memory(guess)))
    return trials


def fits(trial: Trial, limit: float) -> bool:
    """Returns whether the batch of a trial fits in `limit` bytes."""
    return trial.memory is not None and trial.memory <= limit
