"""Nearest-neighbour search by inner product, with a fast exact top-k over blocks of rows.

The k highest scores of a block are in the k groups of 64 rows with the highest maxima, because no score outside these
groups exceeds any of their maxima. Therefore, `top_k` first selects the groups, and then the scores in these groups.
This avoids `top_k` over long rows, which is slow in XLA on CPUs. Ties are ordered by row, as in a stable sort.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from caption_jax.errors import ConfigError

METHODS = ("exact", "approx")
_BLOCK_ROWS = 65536
_GROUP_ROWS = 64
_BATCH_QUERIES = 32  # queries per batch; limits the memory for the scores of a block


class SearchResult(NamedTuple):
    """The rows with the highest scores for each query, in descending order."""

    scores: Float32[np.ndarray, "queries k"]
    rows: Int[np.ndarray, "queries k"]


class Searcher:
    """Finds the vectors with the highest inner product with a query, which is the cosine similarity for unit vectors.

    On CPUs, vectors are used in place, even if memory-mapped. Other devices receive a copy of all vectors.

    Args:
        vectors: the vectors to search.
        method: "exact", or "approx" for `jax.lax.approx_max_k` with an expected recall of at least 95%. It is designed
            for TPUs (Chern et al., 2022, https://arxiv.org/abs/2206.14286) and is no faster on other devices.
    """

    def __init__(self, vectors: Float32[np.ndarray, "images dimension"], method: str = "exact"):
        if method not in METHODS:
            raise ConfigError(f"unknown search method {method!r}; expected one of {', '.join(METHODS)}")
        starts = range(0, len(vectors), _BLOCK_ROWS)
        self._count, self._dimension, self._method = *vectors.shape, method
        self._blocks = [jax.device_put(vectors[start : start + _BLOCK_ROWS], may_alias=True) for start in starts]

    def search(self, queries: Float32[np.ndarray, "queries dimension"], k: int) -> SearchResult:
        """Finds the k nearest vectors for each query, or ranks all vectors if there are fewer than k.

        Raises:
            ValueError: k is less than 1, or the queries and vectors have different dimensions.
        """
        queries, k = np.asarray(queries, np.float32), min(k, self._count) if k > 0 else k
        if k < 1 and self._count:
            raise ValueError(f"k is {k}; it must be at least 1")
        if queries.ndim != 2 or queries.shape[1] != self._dimension:
            raise ValueError(f"queries must be of shape [queries, {self._dimension}], not {queries.shape}")
        starts = range(0, len(queries), _BATCH_QUERIES)
        results = [self._search(queries[start : start + _BATCH_QUERIES], k) for start in starts]
        empty = SearchResult(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        return SearchResult(*map(np.concatenate, zip(empty, *results, strict=True)))

    def _search(self, queries: Float32[np.ndarray, "queries dimension"], k: int) -> SearchResult:
        count = len(queries)
        # Padded to one of two batch sizes, so that at most two programs are compiled.
        padded = np.zeros((1 if count == 1 else _BATCH_QUERIES, self._dimension), np.float32)
        padded[:count] = queries
        best = [_search_block(padded, block, min(k, len(block)), self._method) for block in self._blocks]
        best = jax.device_get(best)
        if not best:
            return SearchResult(np.zeros((count, 0), np.float32), np.zeros((count, 0), np.int64))
        scores = np.concatenate([scores for scores, _ in best], axis=1)[:count]
        starts = np.arange(len(best), dtype=np.int64) * _BLOCK_ROWS
        rows = np.concatenate([rows + start for (_, rows), start in zip(best, starts, strict=True)], axis=1)[:count]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return SearchResult(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))


@functools.partial(jax.jit, static_argnames=("k", "method"))
def _search_block(
    queries: Float[Array, "queries dimension"], block: Float[Array, "rows dimension"], k: int, method: str
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """Returns the k highest scores of a block for each query, and their row indices in the block."""
    # [rows, queries] is twice as fast on CPUs as its transpose. HIGHEST prevents TPUs from rounding to bfloat16.
    scores = jnp.matmul(block, queries.T, precision=jax.lax.Precision.HIGHEST)
    if method == "approx":
        return tuple(jax.lax.approx_max_k(scores.T, k))
    rows, count = scores.shape
    groups = -(-rows // _GROUP_ROWS)
    scores = jnp.pad(scores, ((0, groups * _GROUP_ROWS - rows), (0, 0)), constant_values=-jnp.inf)
    scores = scores.reshape(groups, _GROUP_ROWS, count)
    _, top_groups = jax.lax.top_k(scores.max(1).T, min(k, groups))
    top_groups = jnp.sort(top_groups, axis=1)  # orders ties by row
    candidates = scores[top_groups, :, jnp.arange(count)[:, None]].reshape(count, -1)
    best, indices = jax.lax.top_k(candidates, k)
    group, offset = jnp.divmod(indices, _GROUP_ROWS)
    return best, jnp.take_along_axis(top_groups, group, axis=1) * _GROUP_ROWS + offset
