"""Queries per second over a million vectors, compared with faiss-cpu's exact inner-product index.

    python -m benchmarks.search [--vectors=1000000] [--dimension=256] [--top=10] [--rounds=7]

Requires the bench extra. Our implementation searches a memory-mapped file, like `--mode=search`; faiss searches a copy
in memory. Both must return the same rows. Each uses its default number of threads. Results are medians over alternating
rounds. faiss is measured with its default settings, and with settings that use a matrix product for smaller batches and
larger blocks, which is several times faster here. Ratios refer to the faster of the two.

The last line is JSON. `ratio` is for batches of 32 queries, and `cells` also contains the results of single
queries. `memory` is the increase in the peak memory of the process when our implementation opens and searches the
vectors, divided by their size.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.alternate import Seconds, take_median, time_call
from benchmarks.conditions import Conditions
from caption_jax.retrieval.search import Searcher
from caption_jax.runtime.process import set_up_process

BATCHES = (32, 1)


def write_vectors(path: Path, count: int, dimension: int) -> None:
    """Writes random unit vectors in chunks, so that they do not have to fit in memory."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, count, 10_000):
            file.write(make_unit_vectors(rng, min(10_000, count - start), dimension).tobytes())


def make_unit_vectors(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    """Returns random unit vectors, float32 [count, dimension]."""
    vectors = rng.standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def get_peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_results(ours: tuple[np.ndarray, np.ndarray], peer: tuple[np.ndarray, np.ndarray]) -> None:
    """Checks that the scores and rows of two searches are equal, except for the order of equal scores.

    Raises:
        AssertionError: The results differ.
    """
    np.testing.assert_allclose(ours[0], peer[0], atol=1e-6)
    is_different = ours[1] != peer[1]
    if is_different.mean() > 1e-3:  # scores that are equal up to rounding may be in a different order
        raise AssertionError(f"{is_different.sum()} of {is_different.size} rows differ from those of faiss")


def compare(sides: dict[str, Callable], queries: np.ndarray, rounds: int, conditions: Conditions) -> dict[str, float]:
    """Times all sides in alternating rounds.

    Returns:
        The medians of each side: queries per second, and CPU milliseconds per query. `ratio` compares ours with the
        fastest other side.
    """
    results = {name: search(queries) for name, search in sides.items()}
    for result in results.values():
        check_results(results["ours"], result)
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    with conditions.measured():
        for _ in range(rounds):
            for name, search in sides.items():
                times[name].append(time_call(search, queries)[0])
    comparison = {}
    for name, runs in times.items():
        wall, cpu = take_median(runs)
        comparison[name] = len(queries) / wall
        comparison[f"{name}_cpu_ms"] = 1e3 * cpu / len(queries)
    peer = max(comparison[name] for name in sides if name != "ours")
    return {**comparison, "ratio": comparison["ours"] / peer}


class FaissIndex:
    """faiss-cpu's exact inner-product index over a copy of the vectors."""

    def __init__(self, vectors: np.ndarray, top: int):
        import faiss

        self._faiss, self._top = faiss, top
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        self._defaults = faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Searches with the default settings of faiss."""
        return self._search(queries, *self._defaults)

    def search_with_blas(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Searches with a matrix product for 20 queries or more (a former default), in blocks of 65,536 rows."""
        return self._search(queries, 20, 65536)

    def _search(self, queries: np.ndarray, threshold: int, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
        settings = self._faiss.cvar
        settings.distance_compute_blas_threshold, settings.distance_compute_blas_database_bs = threshold, block_rows
        return self._index.search(queries, self._top)


def measure(
    path: Path, count: int, dimension: int, top: int, rounds: int, conditions: Conditions
) -> tuple[float, dict[str, dict[str, float]]]:
    """Returns our memory as a multiple of the size of the vectors, and the results by batch size; see `compare`."""
    queries = make_unit_vectors(np.random.default_rng(1), max(BATCHES), dimension)
    initial_memory = get_peak_memory()
    vectors = np.memmap(path, np.float32, "r", shape=(count, dimension))
    searcher = Searcher(vectors)
    searcher.search(queries, top)
    searcher.search(queries[:1], top)
    memory = (get_peak_memory() - initial_memory) / vectors.nbytes
    faiss_index = FaissIndex(vectors, top)
    sides = {
        "ours": lambda batch: searcher.search(batch, top),
        "peer": faiss_index.search,
        "peer_with_blas": faiss_index.search_with_blas,
    }
    return memory, {f"batch {batch}": compare(sides, queries[:batch], rounds, conditions) for batch in BATCHES}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    set_up_process()  # like --mode=search, before JAX starts its CPU backend
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        write_vectors(path, options.vectors, options.dimension)
        sizes = options.vectors, options.dimension, options.top
        memory, comparisons = measure(path, *sizes, options.rounds, conditions)
    for name, comparison in comparisons.items():
        print(f"{name}: ratio {comparison['ratio']:.2f}")
        for side in ("ours", "peer", "peer_with_blas"):
            cpu_time = f"{comparison[f'{side}_cpu_ms']:.1f} ms of CPU time per query"
            print(f"    {side:15}{comparison[side]:8.1f} queries/s, {cpu_time}")
    print(f"our memory: {memory:.2f} x the size of the vectors")
    largest = comparisons[f"batch {BATCHES[0]}"]
    peer = max(largest["peer"], largest["peer_with_blas"])
    result = {"name": "search", "ratio": round(largest["ratio"], 3), "ours": round(largest["ours"], 3)}
    result["peer"] = round(peer, 3)
    comparisons = {
        name: {key: round(value, 3) for key, value in comparison.items()} for name, comparison in comparisons.items()
    }
    comparisons["memory"] = {"vectors": round(memory, 3)}
    print(json.dumps({**result, "unit": "queries/s", **conditions.report(), "cells": comparisons}))


if __name__ == "__main__":
    main()
