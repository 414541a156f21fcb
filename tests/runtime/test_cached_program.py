"""Programs that are kept between starts: taken up without tracing, and made again where anything differs."""

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


def kept(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.stablehlo"))


def test_another_start_traces_nothing(folder):
    first, second = Counted(), Counted()
    expected = CachedProgram(first, "count", {"layers": 3})(*ARGUMENTS)
    found = CachedProgram(second, "count", {"layers": 3})(*ARGUMENTS)
    assert (first.traced, second.traced) == (1, 0)
    np.testing.assert_array_equal(found[0], [0, 2, 4])
    assert found[1] == expected[1] == 6


@pytest.mark.parametrize(
    ("cache_key", "arguments"),
    [
        ({"layers": 4}, ARGUMENTS),
        ({"layers": 3}, (ARGUMENTS[0], jnp.arange(4.0), None)),
        ({"layers": 3}, (ARGUMENTS[0], jnp.arange(3), None)),
        ({"layers": 3}, (*ARGUMENTS[:2], jnp.float32(1))),
    ],
)
def test_what_differs_is_traced_anew(folder, cache_key, arguments):
    CachedProgram(Counted(), "count", {"layers": 3})(*ARGUMENTS)
    other = Counted()
    found = CachedProgram(other, "count", cache_key)(*arguments)
    assert other.traced == 1 and len(kept(folder)) == 2
    np.testing.assert_array_equal(found[1], Counted()(*arguments)[1])


def test_a_file_cut_short_is_made_again(folder, caplog):
    CachedProgram(Counted(), "count", {})(*ARGUMENTS)
    (file,) = folder.glob("*.stablehlo")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = Counted()
    assert CachedProgram(again, "count", {})(*ARGUMENTS)[1] == 6
    assert again.traced == 1 and "tracing the program again" in caplog.text
    third = Counted()
    assert CachedProgram(third, "count", {})(*ARGUMENTS)[1] == 6 and third.traced == 0


def test_without_a_folder_nothing_is_kept(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    assert CachedProgram(Counted(), "count", {})(*ARGUMENTS)[1] == 6
    assert kept(folder) == []
