"""The largest batch that fits a chip, in few compilations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """One compilation of a search: images on a chip, bytes of memory they need (None where the compiler gave up)."""

    images: int
    memory: int | None


def largest_batch(
    memory_of: Callable[[int], int | None], first: Tried, fixed: int, unit: int, limit: float, compilations: int
) -> list[Tried]:
    """Looks for the most images that fit, as the memory of a program grows about linearly with its batch.

    Each try goes where the line through the state alone and the nearest batch that fits meets the limit, or between the
    bounds where that lies outside of them.

    Args:
        memory_of: compiles a program for so many images; None where it does not fit.
        first: a batch that has been compiled.
        fixed: bytes that do not depend on the batch, about.
        unit: images come in multiples of this.
        limit: bytes of memory.
        compilations: most calls of `memory_of`.

    Returns:
        All batches tried, `first` included. The answer is the largest that fits; it is exact where one larger by `unit`
        was tried.
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
        tried.append(Tried(guess, memory_of(guess)))
    return tried


def fits(tried: Tried, limit: float) -> bool:
    """Whether a batch fits."""
    return tried.memory is not None and tried.memory <= limit
