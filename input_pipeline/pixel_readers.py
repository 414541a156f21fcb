"""Reads and decodes images in threads or in separate processes, in a fixed order."""

from __future__ import annotations

import collections
import contextlib
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from input_pipeline.data_spec import DataSpec
from input_pipeline.decoding_process import DecodingProcess, DecodingProcessError, Request
from input_pipeline.images import ImageError, Preprocessing
from input_pipeline.inputs import ROWS_PER_READ, Inputs, Pixels, RowArrays
from input_pipeline.prepared.prepared_pixels import PreparedPixels, has_pixels
from input_pipeline.records import Split


def make_pixels(split: Split, preprocessing: Preprocessing, spec: DataSpec) -> Inputs:
    """Returns the images of a split, read or decoded on access as `config.data.worker_type` says."""
    if has_pixels(split, preprocessing.size):
        return PreparedPixels(split, preprocessing.size)
    if spec.worker_type == "processes" and spec.workers:
        return PixelsFromProcesses(split, preprocessing, spec.workers)
    return Pixels(split, preprocessing)


class PixelsFromProcesses(Inputs):
    """Images, decoded on access in separate processes. Thread-safe.

    Processes are started when they are first needed. Images that are not files, such as those of a TFDS dataset, are
    read in this process.

    Args:
        split: the images.
        preprocessing: preprocessing of images.
        processes: number of processes, and of threads that can call `load_rows` without waiting for each other.
    """

    name = "image"
    dtype = np.dtype(np.uint8)

    def __init__(self, split: Split, preprocessing: Preprocessing, processes: int):
        self.shape = (preprocessing.size, preprocessing.size, 3)
        self._split, self._preprocessing, self._count = split, preprocessing, processes
        self._idle: queue.LifoQueue[DecodingProcess | None] = queue.LifoQueue()  # None if it is not started yet
        for _ in range(processes):
            self._idle.put(None)

    def load(self, index: int, epoch: int = 0) -> np.ndarray:
        """Returns uint8 [size, size, 3]. Raises ImageError."""
        rows, problems = self.load_rows([index], [epoch])
        if problems:
            raise problems[0]
        return rows[0]

    def load_rows(self, indices: Sequence[int], epochs: Sequence[int]) -> tuple[RowArrays, dict[int, ImageError]]:
        """Decodes several images in one process; see `Inputs.load_rows`.

        Raises:
            DecodingProcessError: the process ended.
        """
        pixels: list[np.ndarray | None] = [None] * len(indices)
        problems: dict[int, ImageError] = {}
        request, rows = Request([], [], self._preprocessing), []
        for row, index in enumerate(indices):
            record = self._split[index]
            try:
                request.sources.append(record.source())
            except OSError as error:
                problems[row] = ImageError(record.name, str(error))
                continue
            request.names.append(record.name)
            rows.append(row)
        decoded, reasons = self._decode(request)
        for number, row in enumerate(rows):
            if number in reasons:
                problems[row] = ImageError(request.names[number], reasons[number])
            else:
                pixels[row] = decoded[number]
        return pixels, problems

    def close(self) -> None:
        """Ends the processes, after their current request. The next request starts them again."""
        for process in [self._idle.get() for _ in range(self._count)]:
            if process is not None:
                process.close()
            self._idle.put(None)

    def _decode(self, request: Request) -> tuple[np.ndarray, dict[int, str]]:
        process = self._idle.get()
        try:
            process = process or DecodingProcess(ROWS_PER_READ * int(np.prod(self.shape)), self._count)
            return process.decode(request)
        except DecodingProcessError:
            process.close()
            process = None
            raise
        finally:
            self._idle.put(process)


def decode_in_order(
    split: Split, preprocessing: Preprocessing, spec: DataSpec, indices: Sequence[int]
) -> Iterator[np.ndarray | ImageError]:
    """Yields the pixels of the images at `indices`, or why an image cannot be read; `spec` configures the workers."""
    workers = max(spec.workers, 1)
    pixels = make_pixels(split, preprocessing, spec)
    pending: collections.deque[Future[tuple[RowArrays, dict[int, ImageError]]]] = collections.deque()
    with contextlib.closing(pixels), ThreadPoolExecutor(workers, thread_name_prefix="decoding") as pool:
        for start in range(0, len(indices), ROWS_PER_READ):
            read = indices[start : start + ROWS_PER_READ]
            pending.append(pool.submit(pixels.load_rows, read, [0] * len(read)))
            if len(pending) > 2 * workers:
                yield from _unpack(*pending.popleft().result())
        while pending:
            yield from _unpack(*pending.popleft().result())


def _unpack(rows: RowArrays, problems: dict[int, ImageError]) -> Iterator[np.ndarray | ImageError]:
    for row, array in enumerate(rows):
        yield problems.get(row, array)
