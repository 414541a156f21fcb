"""Cached programs are loaded without tracing in later processes, and traced again if anything differs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damaged_weights import DAMAGE

from caption_jax.runtime.cached_program import CachedProgram


@pytest.fixture
def cache_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


class CountingFunction:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.trace_count = 0

    def __call__(self, weights, values, shift=None):
        self.trace_count += 1
        scaled = weights["scale"] * values
        return scaled, (scaled if shift is None else scaled + shift).sum()


ARGUMENTS = ({"scale": jnp.float32(2)}, jnp.arange(3.0), None)


def list_cached_files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.stablehlo"))


def test_a_cached_program_is_not_traced(cache_folder):
    first, second = CountingFunction(), CountingFunction()
    expected = CachedProgram(first, "count", {"layers": 3})(*ARGUMENTS)
    result = CachedProgram(second, "count", {"layers": 3})(*ARGUMENTS)
    assert (first.trace_count, second.trace_count) == (1, 0)
    np.testing.assert_array_equal(result[0], [0, 2, 4])
    assert result[1] == expected[1] == 6


@pytest.mark.parametrize(
    ("cache_key", "arguments"),
    [
        ({"layers": 4}, ARGUMENTS),
        ({"layers": 3}, (ARGUMENTS[0], jnp.arange(4.0), None)),
        ({"layers": 3}, (ARGUMENTS[0], jnp.arange(3), None)),
        ({"layers": 3}, (*ARGUMENTS[:2], jnp.float32(1))),
    ],
)
def test_programs_with_another_key_or_other_arguments_are_traced(cache_folder, cache_key, arguments):
    CachedProgram(CountingFunction(), "count", {"layers": 3})(*ARGUMENTS)
    function = CountingFunction()
    result = CachedProgram(function, "count", cache_key)(*arguments)
    assert function.trace_count == 1 and len(list_cached_files(cache_folder)) == 2
    np.testing.assert_array_equal(result[1], CountingFunction()(*arguments)[1])


@pytest.mark.parametrize("kind", sorted(DAMAGE.keys() - {"missing"}))
def test_a_damaged_file_is_replaced(cache_folder, caplog, kind):
    CachedProgram(CountingFunction(), "count", {})(*ARGUMENTS)
    (path,) = cache_folder.glob("*.stablehlo")
    DAMAGE[kind](path)
    function = CountingFunction()
    assert CachedProgram(function, "count", {})(*ARGUMENTS)[1] == 6
    assert function.trace_count == 1 and "tracing the program again" in caplog.text
    later_function = CountingFunction()
    assert CachedProgram(later_function, "count", {})(*ARGUMENTS)[1] == 6 and later_function.trace_count == 0


def test_every_flipped_bit_is_noticed(cache_folder, caplog):
    CachedProgram(CountingFunction(), "count", {})(*ARGUMENTS)
    (path,) = cache_folder.glob("*.stablehlo")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(content), 50):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        function = CountingFunction()
        assert CachedProgram(function, "count", {})(*ARGUMENTS)[1] == 6 and function.trace_count == 1
    later_function = CountingFunction()
    assert CachedProgram(later_function, "count", {})(*ARGUMENTS)[1] == 6 and later_function.trace_count == 0


def test_nothing_is_cached_without_a_compilation_cache(cache_folder):
    jax.config.update("jax_compilation_cache_dir", None)
    assert CachedProgram(CountingFunction(), "count", {})(*ARGUMENTS)[1] == 6
    assert list_cached_files(cache_folder) == []


@pytest.fixture
def no_cache_folder():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache_folder")
@pytest.mark.parametrize("has_default_folder", [False, True])
def test_threads_make_each_program_once(tmp_path, monkeypatch, has_default_folder):
    folder = str(tmp_path) if has_default_folder else None
    program, made = CachedProgram(CountingFunction(), "count", {}, default_folder=folder), []
    make, barrier = program._make_program, threading.Barrier(8)

    def make_slowly(arguments, signature):
        made.append(signature)
        time.sleep(0.05)  # long enough for all threads to find that there is no program yet
        return make(arguments, signature)

    def call(number: int) -> float:
        barrier.wait()
        weights, shift = {"scale": jnp.float32(2)}, None
        return float(program(weights, jnp.ones(1 + number % 2), shift)[1])

    monkeypatch.setattr(program, "_make_program", make_slowly)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == [2.0, 4.0] * 4
    assert len(made) == 2
