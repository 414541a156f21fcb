"""What a batch holds of an image: its pixels, or features that a frozen part of the encoder gave for them.

Features lie in blocks of files that are mapped into memory, each the array [images, views, *shape] of a run of
consecutive images; a view is one crop or flip. A block appears by one rename when it is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.records import DataError, Split

BLOCK_BYTES = 64 * 2**20  # about the size of a block, and so the most that is made again after a kill
MOST_BLOCKS = 256  # a larger cache has larger blocks: each is an open file

_SAMPLED = 64  # images whose bytes tell one data set from another, where images are no files


class Inputs(Protocol):
    """What batches need of a kind of input.

    Attributes:
        name: key in the batch.
        shape: of one image's array.
        dtype: of that array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns the array of the split's image `index`. Raises ImageError."""


class Pixels:
    """Images as they are, decoded when they are asked for."""

    name = "image"
    dtype = np.dtype(np.uint8)

    def __init__(self, split: Split, preprocessing: Preprocessing):
        self.shape = (preprocessing.size, preprocessing.size, 3)
        self._split, self._preprocessing = split, preprocessing

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns uint8 [size, size, 3]. Raises ImageError."""
        record = self._split[index]
        try:
            return self._preprocessing.load(record.source(), name=record.name)
        except OSError as error:
            raise ImageError(record.name, str(error)) from error


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """The blocks in a folder: `block_<n>.npy`, and `block_<n>.json` with the images of it that cannot be read.

    Attributes:
        folder: a local folder.
        images: images of the split.
        views: arrays stored of each image.
        shape: of one such array.
        dtype: of the stored values.
    """

    folder: Path
    images: int
    views: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def image_bytes(self) -> int:
        """Bytes that one image takes."""
        return self.views * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def block_images(self) -> int:
        """Images of a block; the last one may have fewer."""
        return max(BLOCK_BYTES // self.image_bytes, -(-self.images // MOST_BLOCKS), 1)

    @property
    def blocks(self) -> range:
        """The numbers of the blocks."""
        return range(-(-self.images // self.block_images))

    def rows(self, block: int) -> range:
        """The images of a block."""
        first = block * self.block_images
        return range(first, min(first + self.block_images, self.images))

    def has(self, block: int) -> bool:
        """Whether a block is there; it is whole then."""
        return self._path(block, "npy").exists()

    def write(self, block: int, features: np.ndarray, problems: dict[int, str]) -> None:
        """Stores a block: [images, views, *shape], and why some of its images (by number) have no features."""
        write_atomically(self._path(block, "json"), json.dumps(problems, indent=2))
        # Last: a block that has it is complete.
        write_atomically(self._path(block, "npy"), lambda file: np.save(file, features.astype(self.dtype, copy=False)))

    def read(self, block: int) -> tuple[np.ndarray, dict[int, str]]:
        """Returns what `write` stored, the array mapped into memory.

        Raises:
            DataError: the block is not there.
        """
        try:
            features = np.load(self._path(block, "npy"), mmap_mode="r")
            problems = json.loads(self._path(block, "json").read_text())
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename} is missing: set config.data.feature_cache.folder to a folder that all processes "
                "share, and leave it alone while they run"
            ) from error
        return features, {int(index): reason for index, reason in problems.items()}

    def _path(self, block: int, kind: str) -> Path:
        return self.folder / f"block_{block:05d}.{kind}"


class StoredFeatures:
    """Features of all images of a split, one view an epoch; see `FeatureFiles`.

    Args:
        files: all of whose blocks are there.
        split: whose images they are.
        seed: of the order of views.
    """

    name = "features"

    def __init__(self, files: FeatureFiles, split: Split, seed: int):
        self.shape, self.dtype = files.shape, np.dtype(files.dtype)
        self._files, self._split, self._seed = files, split, seed
        blocks = [files.read(block) for block in files.blocks]
        self._features = [features for features, _ in blocks]
        self._problems = {index: reason for _, problems in blocks for index, reason in problems.items()}

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns a view's features, `shape`. Raises ImageError where the image could not be read."""
        record = self._split[index]
        if index in self._problems:
            raise ImageError(record.name, self._problems[index])
        block, row = divmod(index, self._files.block_images)
        # Copied here, by the thread that reads ahead: that is where a cold page waits for the disk.
        return np.array(self._features[block][row, choose_view(self._files.views, self._seed, epoch, record.image_id)])


def choose_view(views: int, seed: int, epoch: int, image_id: str | int) -> int:
    """Picks which of an image's views an epoch uses: in an order of the image's own, round and round."""
    return in_turn(views, 1, f"{seed}/view/{image_id!r}", epoch)[0]


def in_turn(available: int, count: int, key: str, epoch: int) -> list[int]:
    """Returns `count` of the numbers below `available`, the next ones each epoch of an order shuffled by `key`."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    order: list[int] = []
    for place in range(available):  # the number's digits in the factorial base are a random permutation
        number, slot = divmod(number, place + 1)
        order.insert(slot, place)
    return [order[(epoch * count + turn) % available] for turn in range(count)]


def fingerprint(split: Split) -> str:
    """A hash of the images of a split: their ids in order, and each file's size and time of change.

    Where images are no files, the bytes of some stand for all: to read them all would take as long as an epoch.
    """
    digest = hashlib.sha256()
    every = max(len(split) // _SAMPLED, 1)
    for index, record in enumerate(split):
        about = ""
        if isinstance(record.image, Path):
            about = _file_state(record.image)
        elif index % every == 0:
            about = hashlib.sha256(record.source()).hexdigest()
        digest.update(f"{record.image_id!r}\t{about}\n".encode())
    return digest.hexdigest()


def _file_state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "unreadable"
    return f"{state.st_size} {state.st_mtime_ns}"
