"""An index that is searched by many requests: its vectors on the device, and its entries and images on disk."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Float32

from caption_jax.errors import WorkdirError
from caption_jax.retrieval.index import ImageIndex, ModelIdentity
from caption_jax.retrieval.search import Searcher
from caption_jax.serving.embedding_request import (
    MAX_RESULTS,
    IndexedImage,
    Match,
    Thumbnail,
    ThumbnailError,
)
from caption_jax.serving.stored_images import StoredImages


class ServedIndex:
    """Implements `caption_jax.serving.embedding_request.Index`.

    The index is that of the moment it is opened; images that are added later are not found.

    Args:
        folder: folder of the index.
        model: identity of the model that is served.
        width: dimension of its embedding.
        images: the folder of the indexed files; None to serve no images.

    Raises:
        MissingFileError: there is no index.
        WorkdirError: it was built with another model, or is damaged.
        ConfigError: none of its images is in the folder.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: ModelIdentity, width: int, images: StoredImages | None = None
    ):
        index = ImageIndex(folder)
        index.check_model(model)
        if index.dimension != width:
            raise WorkdirError(
                f"{folder}: the index is damaged (its vectors have dimension {index.dimension}, those of the model "
                f"{width}); rebuild it"
            )
        self._images, self._entries = images, index.open_entries()
        if images is not None:
            images.check_entries(self._entries)
        self._searcher = Searcher(index.vectors)

    def __len__(self) -> int:
        return len(self._entries)

    def search(self, vectors: Float32[np.ndarray, "queries width"]) -> list[tuple[Match, ...]]:
        """Returns the best `MAX_RESULTS` images of each query, best first."""
        scores, rows = self._searcher.search(vectors, MAX_RESULTS)
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [tuple(map(Match, *pair)) for pair in pairs]

    def warm_up(self, width: int) -> None:
        """Compiles the programs of `Searcher`: one for a single query, and one for several."""
        for count in (1, 2):
            self.search(np.zeros((count, width), np.float32))

    def get(self, row: int) -> IndexedImage:
        """Returns what clients are told about an image."""
        entry = self._entries.read(row)
        path = None if self._images is None else self._images.resolve(entry)
        if path is not None:
            return IndexedImage(self._images.get_name(path), entry.caption, is_served=True)
        return IndexedImage(os.path.basename(entry.path) if entry.path else str(entry.id), entry.caption)

    def make_thumbnail(self, row: int, known_tag: str = "") -> Thumbnail:
        """Returns the thumbnail of an image, without content if `known_tag` is its tag.

        Raises:
            ThumbnailError: there is no such image, it is not served, or it cannot be read.
        """
        if self._images is None:
            raise ThumbnailError("this server serves no images (--image_folder)")
        if not 0 <= row < len(self):
            raise ThumbnailError(f"the index has {len(self)} images, in rows from 0")
        return self._images.make_thumbnail(self._entries.read(row), known_tag)

    def describe(self) -> dict[str, int | bool]:
        """Returns facts about the index, in JSON."""
        return {
            "images": len(self),
            "captions": self._entries.has_captions,
            "thumbnails": self._images is not None,
            "max_results": MAX_RESULTS,
        }
