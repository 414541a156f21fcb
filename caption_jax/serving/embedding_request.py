"""Requests for embeddings and for searches, and what a program answers for each of their images and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32

MAX_TEXT_CHARACTERS = 1000
MAX_RESULTS = 100  # of a search. All searches compute this number, because it is part of the compiled program

Kind = Literal["images", "texts"]


@dataclasses.dataclass(frozen=True)
class EmbeddingProgram:
    """A compiled program that embeds images or texts."""

    kind: Kind


@dataclasses.dataclass(frozen=True)
class EmbeddingRow:
    """An image or a text of a batch.

    Attributes:
        content: pixels [size, size, 3] uint8, or token ids [length] int32.
        search: whether to search the index for the embedding.
    """

    content: Any
    search: bool = False


@dataclasses.dataclass(frozen=True)
class Match:
    """A result of a search: the row of an image in the index, and its cosine similarity."""

    row: int
    score: float


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The embedding of an image or a text.

    Attributes:
        vector: the unit vector.
        matches: up to `MAX_RESULTS` images of the index, best first, if the row asked for a search.
    """

    vector: Float32[np.ndarray, " width"]
    matches: tuple[Match, ...] = ()


@dataclasses.dataclass(frozen=True)
class IndexedImage:
    """What a client is told about an image of the index.

    Attributes:
        name: path in the folder of images if they are served, otherwise the name of the file, or its id in a dataset.
        caption: generated caption; None if the index has none.
        is_served: whether the image itself is served.
    """

    name: str
    caption: str | None = None
    is_served: bool = False


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small version of an image of the index.

    Attributes:
        tag: changes whenever the file changes.
        content: JPEG, or None if the client has the one with this tag.
    """

    tag: str
    content: bytes | None


class ThumbnailError(Exception):
    """An image of the index is not served, or cannot be read, for a reason in one line without paths."""


class Index(Protocol):
    """An index that is served; implemented by `caption_jax.serving.served_index.ServedIndex`."""

    def __len__(self) -> int:
        """Number of images."""

    def get(self, row: int) -> IndexedImage:
        """Returns what clients are told about an image. Reads files."""

    def make_thumbnail(self, row: int, known_tag: str = "") -> Thumbnail:
        """Returns the thumbnail of an image, without content if `known_tag` is its tag. Raises ThumbnailError."""

    def describe(self) -> Mapping[str, Any]:
        """Returns facts about the index, in JSON."""


class Embedder(Protocol):
    """The joint embedding of a model; implemented by `caption_jax.serving.served_embedding.ServedEmbedding`."""

    width: int
    index: Index | None

    def encode(self, text: str) -> Any:
        """Returns the token ids of a text. Called in several threads."""

    def run(self, program: EmbeddingProgram, rows: list[EmbeddingRow], size: int) -> Sequence[Embedded]:
        """Embeds a batch, which is padded to `size`, and searches the index for the rows that ask for it."""

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Compiles all programs for the sizes."""
