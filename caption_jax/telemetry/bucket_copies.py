"""Copies of local folders on a bucket, for files that libraries can write only to local disks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.files import storage_path, write_atomically

_UPLOAD_SECONDS = 30  # at least this long between two uploads of the same growing file


class FolderCopy:
    """Copies the files in a local folder to a bucket. Only files that have grown since the last copy are written.

    Args:
        local: the local folder.
        target: the folder on the bucket.
    """

    def __init__(self, local: str | os.PathLike[str], target: str | os.PathLike[str]):
        self._local, self._target = Path(local), storage_path(target)
        self._sizes: dict[Path, int] = {}

    def update(self) -> None:
        """Copies the files. Raises the errors of the bucket's client."""
        for path in sorted(path for path in self._local.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if self._sizes.get(path) != len(content):
                target = self._target / path.relative_to(self._local).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, content)
                self._sizes[path] = len(content)


class BucketEventWriter:
    """A `clu.metric_writers.MetricWriter` on a bucket: event files are written locally and copied at intervals.

    TensorFlow, which writes event files, has its own client for `gs://` and none for other buckets. If the process is
    killed, the events since the last copy are lost; `metrics.jsonl` has the scalars.

    Args:
        folder: folder of the event files on the bucket.
        open_writer: opens the writer of a local folder.
    """

    def __init__(self, folder: str, open_writer: Callable[[str], Any]):
        self._local = tempfile.TemporaryDirectory(prefix="event-files-")
        self._writer = open_writer(self._local.name)
        self._copy = FolderCopy(self._local.name, folder)
        self._copied = time.monotonic()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes scalars by name."""
        self._writer.write_scalars(step, scalars)
        self._update()

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images by name."""
        self._writer.write_images(step, images)
        self._update()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts by name."""
        self._writer.write_texts(step, texts)
        self._update()

    def close(self) -> None:
        """Copies the complete files and deletes the local ones."""
        self._writer.close()
        self._copy.update()
        self._local.cleanup()

    def _update(self) -> None:
        if time.monotonic() - self._copied >= _UPLOAD_SECONDS:
            self._writer.flush()
            self._copy.update()
            self._copied = time.monotonic()
