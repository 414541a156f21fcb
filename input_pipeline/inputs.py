"""Model inputs for each image: pixels, or precomputed features of the frozen part of the encoder.

Features are stored in blocks, memory-mapped files that each contain an array [images, views, *shape] for consecutive
images. A view is an augmented version of an image (crop or flip). Blocks are written atomically.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.records import DataError, Record, Split

BLOCK_BYTES = 64 * 2**20  # approximate block size, which bounds the work that is lost when a process is killed
MAX_BLOCKS = 256  # larger caches use larger blocks, because each block is an open file

# Number of images that a thread reads at a time. Passing them on one by one would take as long as opening them.
ROWS_PER_READ = 16

_HASHED_IMAGES = 64  # approximate number of images that are hashed if a dataset is not stored as image files


RowArrays = np.ndarray | list[np.ndarray | None]  # array [rows, ...], or one array per row, None if it is unreadable


class Inputs(abc.ABC):
    """Interface of model inputs.

    Attributes:
        name: key in the batch.
        shape: shape of the array of one image.
        dtype: dtype of the array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns the array of the image at `index` in the split. Raises ImageError."""

    def rows_per_read(self, batch_size: int) -> int:
        """Returns how many of the `batch_size` rows of a batch a thread loads in one call of `load_rows`."""
        return min(batch_size, ROWS_PER_READ)

    def load_rows(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[RowArrays, dict[int, ImageError]]:
        """Returns the arrays of several images, and the errors of unreadable images by row.

        Args:
            indices: indices of the images in the split.
            epochs: epoch of each image.
        """
        rows: list[np.ndarray | None] = []
        problems: dict[int, ImageError] = {}
        for row, (index, epoch) in enumerate(zip(indices, epochs, strict=True)):
            try:
                rows.append(self.load(index, epoch))
            except ImageError as error:
                rows.append(None)
                problems[row] = error
        return rows, problems

    def close(self) -> None:  # noqa: B027 - most inputs have nothing to close
        """Ends processes that load images. Loading may continue afterwards."""


class Pixels(Inputs):
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
class CacheFiles(abc.ABC):
    """Files of a cache, which are written in blocks of consecutive images, so that an interrupted run can continue.

    Attributes:
        folder: local folder.
        images: number of images in the split.
    """

    folder: Path
    images: int

    @property
    @abc.abstractmethod
    def bytes_per_image(self) -> int:
        """Stored bytes per image."""

    @property
    def images_per_block(self) -> int:
        """Number of images per block; the last block may have fewer."""
        return max(BLOCK_BYTES // self.bytes_per_image, 1)

    @property
    def blocks(self) -> range:
        """Indices of all blocks."""
        return range(-(-self.images // self.images_per_block))

    def image_indices(self, block: int) -> range:
        """Returns the indices of the images in a block."""
        first = block * self.images_per_block
        return range(first, min(first + self.images_per_block, self.images))

    @abc.abstractmethod
    def has_block(self, block: int) -> bool:
        """Whether a block exists; existing blocks are complete."""

    def _get_path(self, block: int, suffix: str) -> Path:
        return self.folder / f"block_{block:05d}.{suffix}"


@dataclasses.dataclass(frozen=True)
class FeatureFiles(CacheFiles):
    """Blocks of features in a folder: `block_<n>.npy`, and `block_<n>.json` that lists unreadable images.

    Attributes:
        views: number of views per image.
        shape: shape of the features of one view.
        dtype: dtype of the stored values.
    """

    views: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes_per_image(self) -> int:
        """Size of the features of all views of one image, in bytes."""
        return self.views * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def images_per_block(self) -> int:
        """Number of images per block, which is limited by the number of open files."""
        return max(super().images_per_block, -(-self.images // MAX_BLOCKS))

    def has_block(self, block: int) -> bool:
        """Whether a block exists; existing blocks are complete."""
        return self._get_path(block, "npy").exists()

    def write(self, block: int, features: np.ndarray, problems: dict[int, str]) -> None:
        """Writes a block.

        Args:
            block: index of the block.
            features: features of the images in the block, [images, views, *shape].
            problems: why each unreadable image cannot be read, by its index in the split.
        """
        write_atomically(self._get_path(block, "json"), json.dumps(problems, indent=2))
        # The array is written last, so its presence marks the block as complete.
        path = self._get_path(block, "npy")
        write_atomically(path, lambda file: _write_array(file, features.astype(self.dtype, copy=False)))

    def read(self, block: int) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the memory-mapped features and the problems of a block; see `write`.

        Raises:
            DataError: the block is missing.
        """
        try:
            features = np.load(self._get_path(block, "npy"), mmap_mode="r")
            problems = json.loads(self._get_path(block, "json").read_text())
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename} is missing: set config.data.feature_cache.folder to a folder shared by all "
                "processes, and do not modify it while they run"
            ) from error
        return features, {int(index): reason for index, reason in problems.items()}


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Writes the same bytes as `np.save`, which does not report why a write to a disk fails."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.reshape(-1).view(np.uint8))


class StoredFeatures(Inputs):
    """Stored features of all images of a split, one view per epoch; see `FeatureFiles`.

    Args:
        files: the stored blocks, all of which must exist.
        split: the split whose images the features were computed from.
        seed: seed for the order of views.
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
        block, row = divmod(index, self._files.images_per_block)
        # Copied here, so that the prefetching thread, not the training loop, waits for the disk.
        return np.array(self._features[block][row, choose_view(self._files.views, self._seed, epoch, record.image_id)])


def choose_view(views: int, seed: int, epoch: int, image_id: str | int) -> int:
    """Returns the view of an image for an epoch; epochs cycle through the views in an order specific to the image."""
    return cycle_indices(views, 1, f"{seed}/view/{image_id!r}", epoch)[0]


def cycle_indices(available: int, count: int, key: str, epoch: int) -> list[int]:
    """Returns the next `count` indices below `available` for an epoch, in a cyclic order that is shuffled by `key`."""
    random_number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    order: list[int] = []
    for index in range(available):  # the digits of a random number in the factorial base are a random permutation
        random_number, position = divmod(random_number, index + 1)
        order.insert(position, index)
    return [order[(epoch * count + offset) % available] for offset in range(count)]


def fingerprint(split: Split) -> str:
    """Returns a hash of the image ids in order, and of the size and modification time of each image file.

    If images are not files, the content of a sample of them is hashed, because reading all images would take as long as
    an epoch.
    """
    digest = hashlib.sha256()
    stride = max(len(split) // _HASHED_IMAGES, 1)
    for index, record in enumerate(split):
        content = ""
        if isinstance(record.image, Path):
            content = _describe_file(record.image)
        elif index % stride == 0:
            content = _hash_content(record)
        digest.update(f"{record.image_id!r}\t{content}\n".encode())
    return digest.hexdigest()


def _hash_content(record: Record) -> str:
    try:
        return hashlib.sha256(record.source()).hexdigest()
    except OSError:  # it is masked and reported when it is read as an image
        return "unreadable"


def _describe_file(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"
