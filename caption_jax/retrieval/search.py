"""The nearest of many vectors: a product over blocks of rows, and a top-k that looks at few of the scores.

Exact: the k best of a block lie in the k groups of 64 rows that have the highest maxima, for each of the other groups
has k above it. So all scores are read once for the maxima, which is quick, and only the scores of k groups are ranked;
XLA ranks long rows slowly on CPUs. Equal scores stand in the order of their rows, as a stable sort would leave them.
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
_QUERIES = 32  # at once: scores of a block are kept for so many


class Found(NamedTuple):
    """The best rows of each query, best first."""

    scores: Float32[np.ndarray, "queries k"]
    rows: Int[np.ndarray, "queries k"]


class Searcher:
    """Finds the vectors with the highest inner product; of unit vectors, that is the cosine of the angle between.

    On a CPU the vectors are used where they lie, a memory-mapped file included; another device gets a copy of them all.

    Args:
        vectors: that are searched.
        method: "exact", or "approx" for `jax.lax.approx_max_k`, which misses one in twenty at most on average. It is
            made for TPUs (Chern et al., 2022, https://arxiv.org/abs/2206.14286); elsewhere nothing is gained by it.
    """

    def __init__(self, vectors: Float32[np.ndarray, "images dimension"], method: str = "exact"):
        if method not in METHODS:
            raise ConfigError(f"unknown search method {method!r}; choose one of {', '.join(METHODS)}")
        starts = range(0, len(vectors), _BLOCK_ROWS)
        self._count, self._dimension, self._method = *vectors.shape, method
        self._blocks = [jax.device_put(vectors[start : start + _BLOCK_ROWS], may_alias=True) for start in starts]

    def search(self, queries: Float32[np.ndarray, "queries dimension"], k: int) -> Found:
        """Finds the k best vectors for each query; all of them, ranked, where there are fewer.

        Raises:
            ValueError: k is below 1, or the queries have another length than the vectors.
        """
        queries, k = np.asarray(queries, np.float32), min(k, self._count) if k > 0 else k
        if k < 1 and self._count:
            raise ValueError(f"k is {k}; it must be at least 1")
        if queries.ndim != 2 or queries.shape[1] != self._dimension:
            raise ValueError(f"queries must be of shape [queries, {self._dimension}], not {queries.shape}")
        found = [self._search(queries[i : i + _QUERIES], k) for i in range(0, len(queries), _QUERIES)]
        empty = Found(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        return Found(*map(np.concatenate, zip(empty, *found, strict=True)))

    def _search(self, queries: Float32[np.ndarray, "queries dimension"], k: int) -> Found:
        count = len(queries)
        padded = np.zeros((1 if count == 1 else _QUERIES, self._dimension), np.float32)  # two programs at most
        padded[:count] = queries
        best = [_best_of_block(padded, block, min(k, len(block)), self._method) for block in self._blocks]
        best = jax.device_get(best)
        if not best:
            return Found(np.zeros((count, 0), np.float32), np.zeros((count, 0), np.int64))
        scores = np.concatenate([scores for scores, _ in best], axis=1)[:count]
        starts = np.arange(len(best), dtype=np.int64) * _BLOCK_ROWS
        rows = np.concatenate([rows + start for (_, rows), start in zip(best, starts, strict=True)], axis=1)[:count]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))


@functools.partial(jax.jit, static_argnames=("k", "method"))
def _best_of_block(
    queries: Float[Array, "queries dimension"], block: Float[Array, "rows dimension"], k: int, method: str
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """The k highest scores of a block for each query, and their rows in the block."""
    # Rows first: twice as fast on a CPU as the transpose. Highest: or TPUs would round the vectors to bfloat16.
    scores = jnp.matmul(block, queries.T, precision=jax.lax.Precision.HIGHEST)
    if method == "approx":
        return jax.lax.approx_max_k(scores.T, k)
    rows, count = scores.shape
    groups = -(-rows // _GROUP_ROWS)
    scores = jnp.pad(scores, ((0, groups * _GROUP_ROWS - rows), (0, 0)), constant_values=-jnp.inf)
    scores = scores.reshape(groups, _GROUP_ROWS, count)
    _, chosen = jax.lax.top_k(scores.max(1).T, min(k, groups))
    chosen = jnp.sort(chosen, axis=1)  # of equal scores the first row comes first
    candidates = scores[chosen, :, jnp.arange(count)[:, None]].reshape(count, -1)
    best, places = jax.lax.top_k(candidates, k)
    group, place = jnp.divmod(places, _GROUP_ROWS)
    return best, jnp.take_along_axis(chosen, group, axis=1) * _GROUP_ROWS + place
