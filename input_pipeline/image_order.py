"""The order in which a run reads images, and the part of it that each process reads."""

from __future__ import annotations

import functools
import hashlib
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from input_pipeline.records import DataError, Record, Split


class Draw(NamedTuple):
    """An image at a position of the global sequence.

    Attributes:
        index: index of the image in the split.
        epoch: 0-based epoch, which selects the captions and views of the image.
    """

    index: int
    epoch: int


class Rows(NamedTuple):
    """Consecutive rows of a batch.

    Attributes:
        indices: indices of the images in the split.
        epochs: epoch of each image.
    """

    indices: list[int]
    epochs: list[int]


class Shard:
    """The part of the global sequence that one process reads, as a grain data source of `Rows`.

    Args:
        order: the image at each position of the global sequence.
        start: position of the first image of the first batch.
        batch_size: images per batch, over all processes.
        local_size: images per batch of one process.
        process_index: index of the process.
        rows_per_read: maximum number of rows of an element. Elements do not extend over several batches.
    """

    def __init__(
        self,
        order: Sequence[Draw],
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
        draws = [self._order[position] for position in range(first + row, end)]
        return Rows([draw.index for draw in draws], [draw.epoch for draw in draws])


class ShuffledEpochs(Sequence[Draw]):
    """Infinite sequence of the images of a split, shuffled differently in each epoch.

    Args:
        records: the images.
        seed: seed of the run.
        window: `config.data.shuffle_window`.

    Attributes:
        images: number of images.
        fingerprint: hash of what determines the order besides the seed and the images; "" if there is nothing else.
        indices: function that returns the indices of the images in an epoch, as an array [images].

    Raises:
        DataError: there are no images.
    """

    def __init__(self, records: Sequence[Record], seed: int, window: int = 0):
        if not records:
            raise DataError("the training split has no images")
        self.images = len(records)
        if window:
            blocks = count_blocks(records)
            self.fingerprint = make_fingerprint(window, blocks.tolist())
            shuffle = functools.partial(shuffle_windows, blocks, window, seed)
        else:
            self.fingerprint = ""
            shuffle = functools.partial(shuffle_epoch, self.images, seed)
        self.indices = functools.lru_cache(maxsize=3)(shuffle)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Draw:
        epoch, index = divmod(position, self.images)
        return Draw(int(self.indices(epoch)[index]), epoch)

    def take(self, start: int, count: int) -> Int[np.ndarray, " count"]:
        """Returns the indices of `count` images from a position of the sequence."""
        first, last = start // self.images, (start + count - 1) // self.images
        indices = np.concatenate([self.indices(epoch) for epoch in range(first, last + 1)])
        return indices[start - first * self.images :][:count]


class MixedEpochs(Sequence[Draw]):
    """Infinite sequence of the images of a mixture, in epochs with as many images as there are in all parts together.

    All epochs have the same number of images of each part, in proportion to the weights. Their positions are shuffled.
    The images of a part have the order of its `ShuffledEpochs`, which continues in the next epoch, so that each is used
    once before any is used again. The epoch of a `Draw` is that of the part.

    Args:
        split: the training split, with parts.
        seed: seed of the run.

    Attributes:
        fingerprint: see `ShuffledEpochs`.
    """

    def __init__(self, split: Split, seed: int):
        self._seed, self._count = seed, len(split)
        self._first = np.cumsum([0] + [part.images for part in split.parts])
        self._parts = [
            ShuffledEpochs(split.records[first : first + part.images], seed, part.shuffle_window)
            for first, part in zip(self._first, split.parts, strict=False)
        ]
        self._ends = np.cumsum([part.images_per_epoch for part in split.parts])
        self.fingerprint = make_fingerprint(
            [(part.images, part.images_per_epoch) for part in split.parts], [part.fingerprint for part in self._parts]
        )
        self._draw_epoch = functools.lru_cache(maxsize=3)(self._mix)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Draw:
        epoch, row = divmod(position, self._count)
        indices, epochs = self._draw_epoch(epoch)
        return Draw(int(indices[row]), int(epochs[row]))

    def indices(self, epoch: int) -> Int[np.ndarray, " images"]:
        """Returns the indices of the images in an epoch."""
        return self._draw_epoch(epoch)[0]

    def _mix(self, epoch: int) -> Int[np.ndarray, "2 images"]:
        """Returns the indices of the images in an epoch, and the epochs of their parts."""
        rows = np.argsort(_draw_numbers(self._count, f"{self._seed}/parts/{epoch}"), kind="stable")
        draws = np.empty((2, self._count), np.int64)
        for part, first, rows_of_part in zip(self._parts, self._first, np.split(rows, self._ends[:-1]), strict=False):
            start, count = epoch * len(rows_of_part), len(rows_of_part)
            images = np.stack([first + part.take(start, count), np.arange(start, start + count) // part.images])
            draws[:, np.sort(rows_of_part)] = images
        return draws


def in_order(count: int) -> list[Draw]:
    """Returns the images of an evaluation split, each once."""
    return [Draw(index, 0) for index in range(count)]


def make_train_order(split: Split, window: int, seed: int) -> ShuffledEpochs | MixedEpochs:
    """Returns the order of the training images of a run.

    Args:
        split: the training split.
        window: `config.data.shuffle_window`; unused for a mixture, whose parts have their own.
        seed: seed of the run.

    Raises:
        DataError: the split is empty.
    """
    if split.parts:
        return MixedEpochs(split, seed)
    return ShuffledEpochs(split.records, seed, window)


def shuffle_epoch(count: int, seed: int, epoch: int) -> Int[np.ndarray, " images"]:
    """Returns the order of `count` records in an epoch, the same for all versions of NumPy."""
    return np.argsort(_draw_numbers(count, f"{seed}/{epoch}"), kind="stable")


def shuffle_windows(
    blocks: Int[np.ndarray, " blocks"], window: int, seed: int, epoch: int
) -> Int[np.ndarray, " images"]:
    """Returns an order in which the images of a block are near each other, so that each block is read once.

    The blocks are shuffled and divided into windows of consecutive blocks. The images of a window are shuffled. A
    window has at least one block, and fewer than `window` images besides those of its last block.

    Args:
        blocks: number of images of each block, in the order of the split.
        window: approximate number of images per window.
        seed: seed of the run.
        epoch: 0-based epoch.
    """
    order = np.argsort(_draw_numbers(len(blocks), f"{seed}/blocks/{epoch}"), kind="stable")
    sizes = blocks[order]
    starts = np.cumsum(sizes) - sizes  # positions of the first images of the shuffled blocks
    first_indices = (np.cumsum(blocks) - blocks)[order]
    indices = np.arange(sizes.sum()) + np.repeat(first_indices - starts, sizes)
    windows = np.repeat(starts // window, sizes)
    return indices[np.lexsort((_draw_numbers(len(indices), f"{seed}/{epoch}"), windows))]


def count_blocks(records: Iterable[Record]) -> Int[np.ndarray, " blocks"]:
    """Returns the number of images of each block: consecutive images of the same row group or shard."""
    return np.array([len(list(group)) for _, group in itertools.groupby(records, lambda record: record.block)])


def make_fingerprint(*values: Any) -> str:
    """Returns a hash of values that determine an order."""
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def _draw_numbers(count: int, key: str) -> UInt64[np.ndarray, " count"]:
    # NumPy guarantees that raw random numbers are stable across versions, but not permutations. (grain's shuffle takes
    # milliseconds per image on datasets of a few hundred images.)
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    return np.random.Philox(key=number).random_raw(count)
