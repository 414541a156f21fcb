"""Searches for the largest batch that fits a chip, with few compilations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """One compilation of a search: images per chip, and bytes of memory (None if the compiler ran out of memory)."""

    images: int
    memory: int | None


def largest_batch(
    measure_memory: Callable[[int], int | None], first: Tried, fixed: int, unit: int, limit: float, compilations: int
) -> list[Tried]:
    """Searches for the largest batch that fits, assuming that memory grows about linearly with the batch size.

    Each guess extrapolates linearly from the largest batch that fits to the limit, or bisects the current bounds if the
    extrapolation is outside of them.

    Args:
        measure_memory: compiles the program for a number of images and returns its memory, or None if it does not fit.
        first: a batch that has already been compiled.
        fixed: approximate bytes that do not depend on the batch size.
        unit: the batch size must be a multiple of this.
        limit: bytes of memory.
        compilations: maximum number of calls of `measure_memory`.

    Returns:
        All batches tried, including `first`. The result is the largest one that fits; it is exact if the next larger
        batch (by `unit`) was tried.
    """
    tried = [first]
    for _ in range(compilations):
        fitting = [one for one in tried if fits(one, limit)]
        low = max((one.images for one in fitting), default=0)
        high = min((one.images for one in tried if not fits(one, limit)), default=None)
        if fitting:
            best = max(fitting, key=lambda one: one.images)
            guess = int(best.images * (limit - fixed) / max(best.memory - fixed, 1))
        else:
            guess = high // 2
        guess = guess // unit * unit
        if high is not None and not low < guess < high:
            guess = (low + high) // 2 // unit * unit
        if guess <= low:
            break
        tried.append(Tried(guess, measure_memory(guess)))
    return tried


def fits(tried: Tried, limit: float) -> bool:
    """Whether a batch fits in `limit` bytes."""
    return tried.memory is not None and tried.memory <= limit
