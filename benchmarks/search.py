"""Searches a second among a million vectors, against faiss-cpu's exact inner-product index in the same run.

    python -m benchmarks.search [--vectors=1000000] [--dimension=256] [--top=10] [--rounds=7]

Needs the bench extra. Ours searches a memory-mapped file, as `--mode=search` does, faiss its own copy in memory; both
find the same rows, in turns, with all threads they take by themselves, and the median counts. Batches of 32 queries
make the figure; single ones stand in the cells. Memory is how far the process's peak rose from before the vectors were
opened to after our searches, in multiples of the vectors. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caption_jax.retrieval.search import Searcher

BATCHES = (32, 1)


def write_vectors(path: Path, count: int, dimension: int) -> None:
    """Writes random unit vectors, a few at a time: nothing of them stays in memory."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, count, 10_000):
            file.write(unit_vectors(random, min(10_000, count - start), dimension).tobytes())


def unit_vectors(random: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    """Random directions, float32 [count, dimension]."""
    vectors = random.standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def peak_memory() -> int:
    """Bytes that this process had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_same(ours: tuple[np.ndarray, np.ndarray], peer: tuple[np.ndarray, np.ndarray]) -> None:
    """Raises AssertionError unless both found the same rows, where scores differ by more than rounding."""
    np.testing.assert_allclose(ours[0], peer[0], atol=1e-6)
    different = ours[1] != peer[1]
    if different.mean() > 1e-3:
        raise AssertionError(f"{different.sum()} of {different.size} rows differ from the peer's")


def compare(contestants: dict[str, Callable], queries: np.ndarray, rounds: int) -> dict[str, float]:
    """Searches a second and processor milliseconds a search, ours and the peer's, in turns."""
    check_same(*(search(queries) for search in contestants.values()))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, search in contestants.items():
            times[name].append(timed(search, queries))
    cell = {}
    for name, measured in times.items():
        cell[name] = len(queries) / statistics.median(wall for wall, _ in measured)
        cell[f"{name}_processor_ms"] = 1e3 * statistics.median(spent for _, spent in measured) / len(queries)
    return {**cell, "ratio": cell["ours"] / cell["peer"]}


def timed(function: Callable, *arguments: Any) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(path: Path, count: int, dimension: int, top: int, rounds: int) -> tuple[float, dict[str, dict[str, float]]]:
    """Memory of our search in multiples of the vectors, and what `compare` finds for each batch size."""
    import faiss

    queries = unit_vectors(np.random.default_rng(1), max(BATCHES), dimension)
    before = peak_memory()
    vectors = np.memmap(path, np.float32, "r", shape=(count, dimension))
    searcher = Searcher(vectors)
    searcher.search(queries, top)
    searcher.search(queries[:1], top)
    memory = (peak_memory() - before) / vectors.nbytes
    peer = faiss.IndexFlatIP(dimension)
    peer.add(vectors)
    contestants = {"ours": lambda q: searcher.search(q, top), "peer": lambda q: peer.search(q, top)}
    return memory, {f"batch {batch}": compare(contestants, queries[:batch], rounds) for batch in BATCHES}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        write_vectors(path, options.vectors, options.dimension)
        memory, cells = measure(path, options.vectors, options.dimension, options.top, options.rounds)
    for name, cell in cells.items():
        spent = f"ours {cell['ours_processor_ms']:.1f} ms, peer {cell['peer_processor_ms']:.1f} ms"
        rates = f"ours {cell['ours']:.1f}, peer {cell['peer']:.1f} queries/s, ratio {cell['ratio']:.2f}"
        print(f"{name}: {rates}; processor time a query: {spent}")
    print(f"memory of ours: {memory:.2f} x the vectors")
    figure = cells[f"batch {BATCHES[0]}"]
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    result = {"name": "search", **{key: round(figure[key], 3) for key in ("ratio", "ours", "peer")}}
    cells = {name: {key: round(value, 3) for key, value in cell.items()} for name, cell in cells.items()}
    cells["memory"] = {"vectors": round(memory, 3)}
    print(json.dumps({**result, "unit": "queries/s", "device": device, "cells": cells}))


if __name__ == "__main__":
    main()
