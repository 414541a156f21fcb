"""Dropout masks equal the reference, drop the requested fraction and depend only on row ids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops import dropout as dropout_op
from caption_jax.ops.dropout import dropout, dropout_reference

KEY = jax.random.key(3)
FIRST_RELEASE_MASKS = ["100110111110", "001111000111"]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 21), (5, 64)])
def test_masks_equal_the_reference(bits, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ours, reference = (
        jax.jit(op, static_argnums=(2, 4))(KEY, x, 0.4, None, bits) for op in (dropout, dropout_reference)
    )
    assert 0 < int((ours == 0).sum()) < ours.size
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("op", [dropout, dropout_reference])
def test_sixteen_bits_give_the_exact_rate_and_eight_bits_a_rounded_rate(op):
    x = jnp.ones((2048, 1024))
    for bits, rate in ((8, 26 / 256), (16, 0.1)):
        y = op(KEY, x, 0.1, None, bits)
        assert float((y == 0).mean()) == pytest.approx(rate, abs=4 * (0.09 / x.size) ** 0.5)
        assert float(y.max()) == pytest.approx(1 / (1 - rate), abs=2**-16)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_mask_of_a_row_depends_only_on_its_id(bits):
    x = jnp.ones((6, 40))
    expected = dropout(KEY, x, 0.5, None, bits)
    row_ids = jnp.array([4, 1, 5])
    np.testing.assert_array_equal(dropout(KEY, x[:3], 0.5, row_ids, bits), expected[row_ids])
    assert len(np.unique(expected, axis=0)) == 6


@pytest.mark.parametrize("shape", [(10, 40), (3, 10, 40), (10, 3, 40)])
def test_masks_in_chunks_are_the_same(shape, monkeypatch):
    monkeypatch.setattr(dropout_op, "_CHUNK_SIZE", 4)
    ids = jnp.asarray(np.random.default_rng(0).permutation(shape[0] * shape[1])[: np.prod(shape[:-1])])
    arguments = jnp.array([7, 9], jnp.uint32), jnp.resize(ids, shape[:-1]), shape[-1], 0.3, 8
    expected = dropout_op._make_mask(*arguments)
    np.testing.assert_array_equal(dropout_op._make_mask_in_chunks(*arguments), expected)


def test_the_gradient_is_dropped_with_the_same_mask():
    x = jnp.ones((6, 40))
    gradient = jax.grad(lambda x: (dropout(KEY, x, 0.5) * 3).sum())(x)
    np.testing.assert_array_equal(gradient, 3 * dropout(KEY, x, 0.5))


def test_masks_equal_the_masks_of_the_first_release():
    is_dropped = dropout(jax.random.key(0), jnp.ones((2, 12)), 0.5) == 0
    assert ["".join(map(str, row)) for row in np.asarray(is_dropped, int)] == FIRST_RELEASE_MASKS
