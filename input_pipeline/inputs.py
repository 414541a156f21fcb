"""Inputs of the model per image: pixels, or precomputed features of the frozen part of the encoder.

Features are stored in blocks, memory-mapped files that each contain an array [images, views, *shape] for consecutive
images; a view is one augmentation (crop or flip). Blocks are written atomically.
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

BLOCK_BYTES = 64 * 2**20  # approximate block size, which bounds the work that is lost when a process is killed
MAX_BLOCKS = 256  # larger caches use larger blocks, because each block is an open file

_SAMPLED = 64  # images whose bytes are hashed to identify a dataset that is not stored as image files


class Inputs(Protocol):
    """Interface of the inputs of a batch.

    Attributes:
        name: key in the batch.
        shape: shape of the array per image.
        dtype: dtype of the array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns the array of image `index` of the split. Raises ImageError."""


class Pixels:
    """Images, decoded on access."""

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
    """Blocks of features in a folder: `block_<n>.npy`, and `block_<n>.json` that lists unreadable images.

    Attributes:
        folder: local folder.
        images: number of images in the split.
        views: arrays per image.
        shape: shape of one such array.
        dtype: dtype of the stored values.
    """

    folder: Path
    images: int
    views: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def image_bytes(self) -> int:
        """Bytes per image."""
        return self.views * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def block_images(self) -> int:
        """Images per block; the last block may have fewer."""
        return max(BLOCK_BYTES // self.image_bytes, -(-self.images // MAX_BLOCKS), 1)

    @property
    def blocks(self) -> range:
        """Numbers of all blocks."""
        return range(-(-self.images // self.block_images))

    def rows(self, block: int) -> range:
        """Indices of the images in a block."""
        first = block * self.block_images
        return range(first, min(first + self.block_images, self.images))

    def has(self, block: int) -> bool:
        """Whether a block exists; existing blocks are complete."""
        return self._path(block, "npy").exists()

    def write(self, block: int, features: np.ndarray, problems: dict[int, str]) -> None:
        """Stores a block: features [images, views, *shape], and the reasons why some images (by index) have none."""
        write_atomically(self._path(block, "json"), json.dumps(problems, indent=2))
        # The array is written last, so its presence marks the block as complete.
        write_atomically(self._path(block, "npy"), lambda file: np.save(file, features.astype(self.dtype, copy=False)))

    def read(self, block: int) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the memory-mapped features and the problems that `write` stored.

        Raises:
            DataError: the block is missing.
        """
        try:
            features = np.load(self._path(block, "npy"), mmap_mode="r")
            problems = json.loads(self._path(block, "json").read_text())
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename} is missing: set config.data.feature_cache.folder to a folder shared by all "
                "processes, and do not modify it while they run"
            ) from error
        return features, {int(index): reason for index, reason in problems.items()}

    def _path(self, block: int, kind: str) -> Path:
        return self.folder / f"block_{block:05d}.{kind}"


class StoredFeatures:
    """Stored features of all images of a split, one view per epoch; see `FeatureFiles`.

    Args:
        files: files of which all blocks exist.
        split: the split that was encoded.
        seed: seed of the order of views.
    """

    name = "features"

    def __init__(self, files: FeatureFiles, split: Split, seed: int):
        self.shape, self.dtype = files.shape, np.dtype(files.dtype)
        self._files, self._split, self._seed = files, split, seed
        blocks = [files.read(block) for block in files.blocks]
        self._features = [features for features, _ in blocks]
        self._problems = {index: reason for _, problems in blocks for index, reason in problems.items()}

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns the features of one view, of shape `shape`. Raises ImageError if the image could not be read."""
        record = self._split[index]
        if index in self._problems:
            raise ImageError(record.name, self._problems[index])
        block, row = divmod(index, self._files.block_images)
        # Copied here so that page faults wait for the disk in the prefetching thread.
        return np.array(self._features[block][row, choose_view(self._files.views, self._seed, epoch, record.image_id)])


def choose_view(views: int, seed: int, epoch: int, image_id: str | int) -> int:
    """Returns the view of an image for an epoch; epochs cycle through the views in an order specific to the image."""
    return cycle_indices(views, 1, f"{seed}/view/{image_id!r}", epoch)[0]


def cycle_indices(available: int, count: int, key: str, epoch: int) -> list[int]:
    """Returns `count` indices below `available`: each epoch takes the next ones of a cyclic order shuffled by `key`."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    order: list[int] = []
    for index in range(available):  # the digits of a random number in the factorial base are a random permutation
        number, position = divmod(number, index + 1)
        order.insert(position, index)
    return [order[(epoch * count + turn) % available] for turn in range(count)]


def fingerprint(split: Split) -> str:
    """Hash of the images of a split: their ids in order, and the size and modification time of each file.

    If images are not files, the bytes of a sample are hashed, because reading all of them would take as long as an
    epoch.
    """
    digest = hashlib.sha256()
    every = max(len(split) // _SAMPLED, 1)
    for index, record in enumerate(split):
        content = ""
        if isinstance(record.image, Path):
            content = _file_state(record.image)
        elif index % every == 0:
            content = hashlib.sha256(record.source()).hexdigest()
        digest.update(f"{record.image_id!r}\t{content}\n".encode())
    return digest.hexdigest()


def _file_state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "unreadable"
    return f"{state.st_size} {state.st_mtime_ns}"
