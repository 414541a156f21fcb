"""Blockwise top-k compared with the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.top_k import top_k, top_k_reference


@pytest.mark.parametrize("num_values", [20, 1280, 1299, 4001])  # one block, and blocks with and without a remainder
@pytest.mark.parametrize("seed", range(5))
def test_top_k_equals_the_reference(num_values, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 2, num_values)).astype(np.float32)
    values[0] = rng.integers(0, 3, size=(2, num_values))  # the lower index wins ties
    values[1] = -np.inf  # all but three values are excluded
    values[1, :, rng.integers(0, num_values, 3)] = -1.0
    result = jax.jit(top_k, static_argnums=1)(jnp.asarray(values), 5)
    for ours, reference in zip(result, top_k_reference(values, 5), strict=True):
        np.testing.assert_array_equal(ours, reference)


def test_the_largest_values_can_all_be_in_one_block_or_in_the_remainder():
    values = np.zeros((2, 2000), np.float32)
    values[0, 640:645] = np.arange(1, 6)
    values[1, 1995:] = np.arange(1, 6)
    assert top_k(jnp.asarray(values), 5)[1].tolist() == [[644, 643, 642, 641, 640], [1999, 1998, 1997, 1996, 1995]]
