"""Stored pixels: the decoded squares of all images of a split in one memory-mapped file.

Reading a batch is a copy of its rows, without decoding. Pages that are in memory are shared by all processes of a
machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from input_pipeline.files import write_atomically
from input_pipeline.images import ImageError
from input_pipeline.inputs import CacheFiles, Inputs
from input_pipeline.records import DataError, Split


@dataclasses.dataclass(frozen=True)
class PixelFiles(CacheFiles):
    """The file `pixels.npy`, uint8 [images, size, size, 3], and `block_<n>.json` that lists unreadable images.

    The file has its full size from the start, and blocks are written in place. The list of a block is written after its
    pixels, so its presence marks the block as complete. Several processes may write at the same time, because the
    content of a block does not depend on the process that writes it.

    Attributes:
        size: side of the squares, in pixels.
    """

    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.size, self.size, 3

    @property
    def bytes_per_image(self) -> int:
        """Bytes per image."""
        return 3 * self.size**2

    @property
    def path(self) -> Path:
        """The file of pixels."""
        return self.folder / "pixels.npy"

    def has_block(self, block: int) -> bool:
        """Whether a block is complete."""
        return self._get_path(block, "json").exists() and self._is_full_size()

    def create(self) -> None:
        """Creates the file of pixels in its full size, without allocating disk space, unless it exists.

        Raises:
            OSError: the file cannot be created.
        """
        if not self._is_full_size():
            for path in self.folder.glob("block_*.json"):  # of a file that was deleted
                path.unlink(missing_ok=True)
        header = self._header()
        with self._opened_for_writing() as file:
            if os.fstat(file.fileno()).st_size < self._file_size():
                os.truncate(file.fileno(), self._file_size())
            os.pwrite(file.fileno(), header, 0)

    def write(self, block: int, pixels: UInt8[np.ndarray, "images size size 3"], problems: dict[int, str]) -> None:
        """Writes a block; see `FeatureFiles.write`.

        Raises:
            OSError: the disk is full, or another error of the file system.
        """
        content = memoryview(np.ascontiguousarray(pixels)).cast("B")
        offset = len(self._header()) + self.image_indices(block).start * self.bytes_per_image
        with self._opened_for_writing() as file:  # not through the memory map, where a full disk ends the process
            while content:
                written = os.pwrite(file.fileno(), content, offset)
                content, offset = content[written:], offset + written
            os.fsync(file.fileno())
        write_atomically(self._get_path(block, "json"), json.dumps(problems, indent=2))

    def read(self) -> tuple[UInt8[np.ndarray, "images size size 3"], dict[int, str]]:
        """Returns the memory-mapped pixels of all images, and why unreadable images cannot be read, by index.

        Raises:
            DataError: a block is missing.
        """
        try:
            texts = [self._get_path(block, "json").read_text() for block in self.blocks]
            pixels = np.load(self.path, mmap_mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise DataError(
                f"the pixels in {self.folder} are incomplete ({error}): set config.data.pixel_cache.folder to a folder "
                "shared by all processes, and do not modify it while they run"
            ) from error
        problems = {int(index): reason for text in texts for index, reason in json.loads(text).items()}
        return pixels, problems

    @contextlib.contextmanager
    def _opened_for_writing(self) -> Iterator[io.FileIO]:
        try:
            # Neither truncates an existing file nor appends to it.
            with io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
                yield file
        except OSError as error:
            error.filename = os.fspath(self.path)  # a write that fails does not name its file
            raise

    def _is_full_size(self) -> bool:
        try:
            return self.path.stat().st_size == self._file_size()
        except FileNotFoundError:
            return False

    def _file_size(self) -> int:
        return len(self._header()) + self.images * self.bytes_per_image

    def _header(self) -> bytes:
        header = io.BytesIO()
        shape = (self.images, *self.shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return header.getvalue()


class StoredPixels(Inputs):
    """Stored pixels of all images of a split, which equal those that `Pixels` decodes.

    Args:
        files: the files, of which all blocks must exist.
        split: the split whose images were decoded.

    Attributes:
        problems: why unreadable images cannot be read, by index in the split.
    """

    name = "image"
    dtype = np.dtype(np.uint8)

    def __init__(self, files: PixelFiles, split: Split):
        self.shape = files.shape
        self._split = split
        pixels, self.problems = files.read()
        self._pixels = np.asarray(pixels)  # not a subclass of arrays

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns uint8 [size, size, 3]. Raises ImageError if the image could not be read."""
        if index in self.problems:
            raise ImageError(self._split[index].name, self.problems[index])
        return np.array(self._pixels[index])

    def rows_per_read(self, batch_size: int) -> int:
        """Returns the whole batch."""
        return batch_size

    def load_rows(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[np.ndarray, dict[int, ImageError]]:
        """Copies the rows of several images in one call, which releases the GIL; see `Inputs.load_rows`."""
        problems = {}
        if self.problems:
            unreadable = {row: index for row, index in enumerate(indices) if index in self.problems}
            problems = {
                row: ImageError(self._split[index].name, self.problems[index]) for row, index in unreadable.items()
            }
        return np.take(self._pixels, indices, axis=0), problems
