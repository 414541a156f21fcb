"""Search finds what a whole product and a stable sort in NumPy find."""

from __future__ import annotations

import numpy as np
import pytest

from caption_jax.retrieval import search
from caption_jax.retrieval.search import Searcher


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 200 rows: neither groups nor blocks divide the vectors evenly."""
    monkeypatch.setattr(search, "_BLOCK_ROWS", 200)
    monkeypatch.setattr(search, "_QUERIES", 4)


def whole_numbers(*shape: int) -> np.ndarray:
    """Vectors whose products are exact, and often equal."""
    return np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)


def sorted_by_numpy(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ vectors.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize(("count", "queries", "k"), [(530, 5, 7), (400, 1, 1), (64, 4, 64), (3, 2, 10), (201, 2, 150)])
def test_rows_and_scores_are_those_of_a_stable_sort(count, queries, k):
    vectors, asked = whole_numbers(count, 16), whole_numbers(queries, 16) + 1
    found = Searcher(vectors).search(asked, k)
    scores, rows = sorted_by_numpy(vectors, asked, k)
    assert count < 10 or k == 1 or len(np.unique(scores)) < scores.size  # there are ties to get wrong
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


def test_all_the_best_in_one_group_and_negative_scores_alone():
    vectors = -np.ones((300, 8), np.float32)
    vectors[66:76] *= np.linspace(0.1, 0.9, 10, dtype=np.float32)[:, None]
    found = Searcher(vectors).search(np.ones((1, 8), np.float32), 12)
    assert found.rows.tolist() == [[*range(66, 76), 0, 1]]
    assert (found.scores < 0).all()


def test_a_mapped_file_is_searched_where_it_lies(tmp_path):
    vectors = whole_numbers(400, 16)
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)
    searcher = Searcher(mapped)
    assert [block.unsafe_buffer_pointer() for block in searcher._blocks] == [
        mapped[start:].ctypes.data for start in (0, 200)
    ]
    np.testing.assert_array_equal(searcher.search(vectors[:2], 3).rows, sorted_by_numpy(vectors, vectors[:2], 3)[1])


def test_approximate_search_finds_nearly_all():
    vectors, asked = np.random.default_rng(0).normal(size=(2, 600, 16)).astype(np.float32)
    found = Searcher(vectors, "approx").search(asked[:8], 10).rows
    right = sorted_by_numpy(vectors, asked[:8], 10)[1]
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), right.tolist(), strict=True)]
    assert np.mean(shared) >= 9


def test_nothing_to_search_and_nothing_asked():
    assert Searcher(np.zeros((0, 16), np.float32)).search(whole_numbers(2, 16), 5).rows.shape == (2, 0)
    assert Searcher(whole_numbers(9, 16)).search(np.zeros((0, 16), np.float32), 5).rows.shape == (0, 5)


def test_what_cannot_be_searched_is_refused():
    searcher = Searcher(whole_numbers(9, 16))
    with pytest.raises(ValueError, match=r"shape \[queries, 16\], not \(2, 8\)"):
        searcher.search(whole_numbers(2, 8), 3)
    with pytest.raises(ValueError, match="k is 0"):
        searcher.search(whole_numbers(2, 16), 0)
    with pytest.raises(ValueError, match="unknown search method 'fast'"):
        Searcher(whole_numbers(9, 16), "fast")
