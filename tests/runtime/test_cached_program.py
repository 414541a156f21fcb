"""Programs cached between starts: loaded without tracing, and traced again if anything differs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.runtime.cached_program import CachedProgram


@pytest.fixture
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


class Counted:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self, weights, values, shift=None):
        self.traced += 1
        total = weights["scale"] * values
        return total, (total if shift is None else total + shift).sum()


ARGUMENTS = ({"scale": jnp.float32(2)}, jnp.arange(3.0), None)


def cached_files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.stablehlo"))


def test_a_second_start_does_not_trace(folder):
    first, second = Counted(), Counted()
    expected = CachedProgram(first, "count", {"layers": 3})(*ARGUMENTS)
    result = CachedProgram(second, "count", {"layers": 3})(*ARGUMENTS)
    assert (first.traced, second.traced) == (1, 0)
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
def test_different_programs_are_traced_again(folder, cache_key, arguments):
    CachedProgram(Counted(), "count", {"layers": 3})(*ARGUMENTS)
    function = Counted()
    result = CachedProgram(function, "count", cache_key)(*arguments)
    assert function.traced == 1 and len(cached_files(folder)) == 2
    np.testing.assert_array_equal(result[1], Counted()(*arguments)[1])


def test_a_truncated_file_is_replaced(folder, caplog):
    CachedProgram(Counted(), "count", {})(*ARGUMENTS)
    (file,) = folder.glob("*.stablehlo")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    function = Counted()
    assert CachedProgram(function, "count", {})(*ARGUMENTS)[1] == 6
    assert function.traced == 1 and "tracing the program again" in caplog.text
    third = Counted()
    assert CachedProgram(third, "count", {})(*ARGUMENTS)[1] == 6 and third.traced == 0


def test_without_a_folder_nothing_is_cached(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    assert CachedProgram(Counted(), "count", {})(*ARGUMENTS)[1] == 6
    assert cached_files(folder) == []
