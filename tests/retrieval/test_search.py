"""Search results match a full matrix product and a stable sort in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from caption_jax.retrieval import search
from caption_jax.retrieval.search import Searcher


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Reduces the block size to 200 rows, so that the number of vectors is often not a multiple of it."""
    monkeypatch.setattr(search, "_BLOCK_ROWS", 200)
    monkeypatch.setattr(search, "_BATCH_QUERIES", 4)


def make_integer_vectors(*shape: int) -> np.ndarray:
    """Returns vectors of small integers, so that dot products are exact and ties are common."""
    return np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)


def search_with_numpy(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores and the rows of the k best vectors of each query."""
    scores = queries @ vectors.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize(
    ("num_vectors", "num_queries", "k"), [(530, 5, 7), (400, 1, 1), (64, 4, 64), (3, 2, 10), (201, 2, 150)]
)
def test_rows_and_scores_match_a_stable_sort(num_vectors, num_queries, k):
    vectors, queries = make_integer_vectors(num_vectors, 16), make_integer_vectors(num_queries, 16) + 1
    result = Searcher(vectors).search(queries, k)
    scores, rows = search_with_numpy(vectors, queries, k)
    assert num_vectors < 10 or k == 1 or len(np.unique(scores)) < scores.size  # the test requires ties
    np.testing.assert_array_equal(result.rows, rows)
    np.testing.assert_array_equal(result.scores, scores)


def test_best_rows_may_be_adjacent_and_have_negative_scores():
    vectors = -np.ones((300, 8), np.float32)
    vectors[66:76] *= np.linspace(0.1, 0.9, 10, dtype=np.float32)[:, None]
    result = Searcher(vectors).search(np.ones((1, 8), np.float32), 12)
    assert result.rows.tolist() == [[*range(66, 76), 0, 1]]
    assert (result.scores < 0).all()


def test_a_memory_mapped_file_is_searched_without_a_copy(tmp_path):
    vectors = make_integer_vectors(400, 16)
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)
    searcher = Searcher(mapped)
    assert [block.unsafe_buffer_pointer() for block in searcher._blocks] == [
        mapped[start:].ctypes.data for start in (0, 200)
    ]
    np.testing.assert_array_equal(searcher.search(vectors[:2], 3).rows, search_with_numpy(vectors, vectors[:2], 3)[1])


def test_approximate_search_has_high_recall():
    vectors, queries = np.random.default_rng(0).normal(size=(2, 600, 16)).astype(np.float32)
    actual = Searcher(vectors, "approx").search(queries[:8], 10).rows
    expected = search_with_numpy(vectors, queries[:8], 10)[1]
    overlaps = [len(set(a) & set(b)) for a, b in zip(actual.tolist(), expected.tolist(), strict=True)]
    assert np.mean(overlaps) >= 9


def test_empty_indexes_and_empty_queries_give_empty_results():
    assert Searcher(np.zeros((0, 16), np.float32)).search(make_integer_vectors(2, 16), 5).rows.shape == (2, 0)
    assert Searcher(make_integer_vectors(9, 16)).search(np.zeros((0, 16), np.float32), 5).rows.shape == (0, 5)


def test_invalid_arguments_are_rejected():
    searcher = Searcher(make_integer_vectors(9, 16))
    with pytest.raises(ValueError, match=r"shape \[queries, 16\], not \(2, 8\)"):
        searcher.search(make_integer_vectors(2, 8), 3)
    with pytest.raises(ValueError, match="k is 0"):
        searcher.search(make_integer_vectors(2, 16), 0)
    with pytest.raises(ValueError, match="unknown search method 'fast'"):
        Searcher(make_integer_vectors(9, 16), "fast")
