"""The order in which a run reads images, and the part of it that each process reads."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.records import DataError


class Rows(NamedTuple):
    """Consecutive rows of a batch.

    Attributes:
        positions: positions of the images in the global sequence.
        indices: indices of the images in the split.
    """

    positions: range
    indices: list[int]


class Shard:
    """The part of the global sequence that one process reads, as a grain data source of `Rows`.

    Args:
        order: index of the image at each position of the global sequence.
        start: position of the first image of the first batch.
        batch_size: images per batch, over all processes.
        local_size: images per batch of one process.
        process_index: index of the process.
        rows_per_read: maximum number of rows of an element. Elements do not extend over several batches.
    """

    def __init__(
        self,
        order: Sequence[int],
        start: int,
        batch_size: int,
        local_size: int,
        process_index: int,
        rows_per_read: int,
    ):
        self._order = order
        self._start = start
        self._batch_size = batch_size
        self._local_size = local_size
        self._offset = process_index * local_size
        self._rows_per_read = rows_per_read
        self._reads_per_batch = -(-local_size // rows_per_read)
        batches, remainder = divmod(len(order) - start, batch_size)
        last_rows = min(max(remainder - self._offset, 0), local_size)
        self._length = batches * self._reads_per_batch + -(-last_rows // rows_per_read)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Rows:
        batch, read = divmod(index, self._reads_per_batch)
        row = read * self._rows_per_read
        first = self._start + batch * self._batch_size + self._offset
        end = min(first + min(row + self._rows_per_read, self._local_size), len(self._order))
        positions = range(first + row, end)
        return Rows(positions, [self._order[position] for position in positions])


class ShuffledEpochs:
    """Infinite sequence of record indices, shuffled differently in each epoch."""

    def __init__(self, count: int, seed: int):
        if not count:
            raise DataError("the training split has no images")
        self._count = count
        self._shuffle_epoch = functools.lru_cache(maxsize=3)(functools.partial(shuffle_epoch, count, seed))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._count)
        return int(self._shuffle_epoch(epoch)[index])


def shuffle_epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of `count` records in an epoch, the same for all versions of NumPy."""
    # NumPy guarantees that raw random numbers are stable across versions, but not permutations. (grain's shuffle takes
    # milliseconds per image on datasets of a few hundred images.)
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=16).digest(), "big")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
