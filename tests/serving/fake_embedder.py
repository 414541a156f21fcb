"""A joint embedding and an index without a network: the vector of a text or an image is made of its characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caption_jax.serving.embedding_request import (
    Embedded,
    EmbeddingProgram,
    EmbeddingRow,
    IndexedImage,
    Match,
    Thumbnail,
    ThumbnailError,
)

WIDTH = 4
NAMES = ("dog", "cat", "horse")


def embed(text: str) -> np.ndarray:
    """Returns a unit vector: the counts of the characters by their code modulo `WIDTH`."""
    counts = np.bincount([ord(character) % WIDTH for character in text], minlength=WIDTH).astype(np.float32)
    return counts / max(float(np.linalg.norm(counts)), 1e-6)


class FakeIndex:
    """An index of the images `NAMES`. The last one has no caption, and its file has gone."""

    def __len__(self) -> int:
        return len(NAMES)

    def get(self, row: int) -> IndexedImage:
        return IndexedImage(f"{NAMES[row]}.jpg", f"a {NAMES[row]}" if row < 2 else None, is_served=row < 2)

    def make_thumbnail(self, row: int, known_tag: str = "") -> Thumbnail:
        if row >= 2:
            raise ThumbnailError("the image cannot be read: no such file")
        return Thumbnail(f"tag{row}", None if known_tag == f"tag{row}" else NAMES[row].encode())

    def describe(self) -> Mapping[str, Any]:
        return {"images": len(self), "captions": True, "thumbnails": True, "max_results": 100}


class FakeEmbedder:
    """Embeds the text of images and texts; see `FakeModel`.

    Attributes:
        batches: (program, number of rows, size) of each batch.
        warm_sizes: the sizes of `warm_up`.
    """

    width = WIDTH

    def __init__(self, index: FakeIndex | None):
        self.index = index
        self.batches: list[tuple[EmbeddingProgram, int, int]] = []
        self.warm_sizes: list[int] = []

    def encode(self, text: str) -> str:
        return text

    def run(self, program: EmbeddingProgram, rows: list[EmbeddingRow], size: int) -> list[Embedded]:
        self.batches.append((program, len(rows), size))
        return [self._embed(row) for row in rows]

    def warm_up(self, sizes: Sequence[int]) -> None:
        self.warm_sizes = list(sizes)

    @staticmethod
    def _embed(row: EmbeddingRow) -> Embedded:
        vector = embed(row.content)
        scores = np.array([embed(name) @ vector for name in NAMES])
        ranked = np.argsort(-scores, kind="stable").tolist() if row.search else []
        return Embedded(vector, tuple(Match(index, float(scores[index])) for index in ranked))
