"""The folder of indexed images. Nothing outside of it is served, whatever the index or a link says."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import simplejpeg

from caption_jax.errors import ConfigError, MissingFileError
from caption_jax.retrieval.entry_reader import EntryReader
from caption_jax.retrieval.index_format import Entry
from caption_jax.serving.embedding_request import Thumbnail, ThumbnailError
from input_pipeline.errors import ImageError
from input_pipeline.files import is_on_bucket
from input_pipeline.images import make_thumbnail
from input_pipeline.limits import Limits

THUMBNAIL_SIDE = 320  # of the longer side, in pixels
_JPEG_QUALITY = 85
_CHECKED_ENTRIES = 1000


class StoredImages:
    """The folder of indexed images.

    Args:
        folder: the folder.
        limits: limits on images.

    Raises:
        ConfigError: the folder is in a bucket, or is a file.
        MissingFileError: it does not exist.
    """

    def __init__(self, folder: str, limits: Limits):
        if is_on_bucket(folder):
            raise ConfigError(f"--image_folder={folder}: the folder must be on a local disk")
        if not os.path.exists(folder):
            raise MissingFileError(f"--image_folder={folder}: no such folder")
        if not os.path.isdir(folder):
            raise ConfigError(f"--image_folder={folder}: is a file; set it to the folder of the indexed images")
        self._folder, self._root, self._limits = folder, os.path.realpath(folder), limits

    def check_entries(self, entries: EntryReader) -> None:
        """Raises ConfigError if none of the first images of an index is in the folder, which is then a wrong one."""
        first = [entries.read(row) for row in range(min(len(entries), _CHECKED_ENTRIES))]
        paths = [entry.path for entry in first if entry.path is not None]
        if first and not any(map(self.resolve, first)):
            reason = f"the first is {paths[0]}" if paths else "they are not separate files"
            raise ConfigError(
                f"--image_folder={self._folder}: none of the indexed images is in this folder ({reason}): set it to "
                "the folder of the indexed files, or leave it out"
            )

    def resolve(self, entry: Entry) -> str | None:
        """Returns the path of an image without links; None if it is not in the folder."""
        if entry.path is None or "\0" in entry.path:
            return None
        path = os.path.realpath(entry.path)
        return path if path.startswith(self._root.rstrip(os.sep) + os.sep) else None

    def get_name(self, path: str) -> str:
        """Returns a path of `resolve` relative to the folder."""
        return os.path.relpath(path, self._root)

    def make_thumbnail(self, entry: Entry, known_tag: str = "") -> Thumbnail:
        """Returns the thumbnail of an image as a JPEG, without content if `known_tag` is its tag.

        Raises:
            ThumbnailError: the image is not in the folder, or cannot be read.
        """
        path = self.resolve(entry)
        if path is None:
            raise ThumbnailError("this image is not in the folder of images")
        try:
            status = os.stat(path)
            tag = _make_tag(path, status.st_size, status.st_mtime_ns)
            if tag == known_tag:
                return Thumbnail(tag, None)
            pixels = make_thumbnail(path, THUMBNAIL_SIDE, name="the image", limits=self._limits)
        except OSError as error:
            raise ThumbnailError(f"the image cannot be read: {error.strerror}") from error
        except ImageError as error:
            raise ThumbnailError(f"the image cannot be read: {error.reason}") from error
        return Thumbnail(tag, simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_JPEG_QUALITY))


def _make_tag(*facts: object) -> str:
    return hashlib.sha256(repr((THUMBNAIL_SIDE, *facts)).encode()).hexdigest()[:32]
