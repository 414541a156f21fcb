"""Random access to the entries of an index, for a process that serves searches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from caption_jax.retrieval.index_format import Entry, parse_entry, read_lines
from input_pipeline.safe_open import open_file


class EntryReader:
    """The entries of an index, which are read one at a time. Thread-safe.

    The file stays open, so that entries can be read after another process has updated the index.

    Args:
        path: the file of entries.
        count: number of entries.

    Attributes:
        has_captions: whether an entry has a caption.

    Raises:
        WorkdirError: an entry is damaged.
    """

    def __init__(self, path: Path, count: int):
        self._path, self._file = path, open_file(path)
        ends = np.zeros(count + 1, np.int64)
        self.has_captions = False
        for row, line in enumerate(read_lines(path, count)):
            ends[row + 1] = len(line)
            self.has_captions |= self._parse(line, row).caption is not None
        self._ends = np.cumsum(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, row: int) -> Entry:
        """Returns the metadata of an image.

        Raises:
            IndexError: there is no such row.
            WorkdirError: the file has been damaged since it was opened.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of an index of {len(self)} images")
        start, end = self._ends[row : row + 2].tolist()
        return self._parse(os.pread(self._file.fileno(), end - start, start), row)

    def _parse(self, line: bytes, row: int) -> Entry:
        return parse_entry(line, f"{self._path}, line {row + 1}")
