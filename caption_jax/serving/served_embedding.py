"""The joint embedding of a trained model, with programs for fixed sizes of batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int

from caption_jax.inference.embedding_programs import make_embedding_programs
from caption_jax.runs.description import RunDescription
from caption_jax.serving.embedding_request import Embedded, EmbeddingProgram, EmbeddingRow

if TYPE_CHECKING:
    from caption_jax.serving.served_index import ServedIndex

PyTree = Any


class ServedEmbedding:
    """Implements `caption_jax.serving.embedding_request.Embedder`.

    Args:
        description: description of the model.
        variables: `params` and `batch_stats`.
        workdir: the workdir, for the cache of compiled programs.
        index: the index that is searched; None for embeddings only.

    Attributes:
        width: dimension of the embedding.
        index: the index.

    Raises:
        WorkdirError: the model has no joint embedding.
    """

    def __init__(
        self,
        description: RunDescription,
        variables: PyTree,
        workdir: str | os.PathLike[str],
        index: ServedIndex | None = None,
    ):
        description.check_joint_embedding()
        self.width, self.index = description.spec.model.joint_embedding.width, index
        self._variables, self._side = variables, description.preprocessing.size
        self._tokenizer = description.text_tokenizer
        self._programs = make_embedding_programs(description, workdir)._asdict()

    def encode(self, text: str) -> Int[np.ndarray, " length"]:
        """Returns the ids of a text, truncated to the length of a caption and padded."""
        return self._tokenizer.encode([text])[0]

    def run(self, program: EmbeddingProgram, rows: list[EmbeddingRow], size: int) -> list[Embedded]:
        """Embeds a batch, and searches the index for the rows that ask for it."""
        contents = np.stack([row.content for row in rows])
        batch = np.zeros((size, *contents.shape[1:]), contents.dtype)
        batch[: len(rows)] = contents
        vectors = np.asarray(self._programs[program.kind](self._variables, batch), np.float32)[: len(rows)]
        matches = iter(self._search(vectors[[row.search for row in rows]]))
        return [
            Embedded(vector, next(matches) if row.search else ()) for row, vector in zip(rows, vectors, strict=True)
        ]

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Compiles all programs for the sizes, or loads them from disk, and runs each once."""
        rows = {"images": EmbeddingRow(np.zeros((self._side, self._side, 3), np.uint8))}
        rows["texts"] = EmbeddingRow(self.encode("a"))
        for kind, row in rows.items():
            for size in sizes:
                self.run(EmbeddingProgram(kind), [row], size)
        if self.index is not None:
            self.index.warm_up(self.width)

    def _search(self, vectors: Float32[np.ndarray, "rows width"]) -> list[tuple]:
        return self.index.search(vectors) if self.index is not None and len(vectors) else []
