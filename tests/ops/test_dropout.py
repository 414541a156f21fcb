"""Dropout masks: the bits of the reference, exact rates with 16 bits, and dependence on row ids alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.dropout import dropout, dropout_reference

KEY = jax.random.key(3)
MASKS = ["100110111110", "001111000111"]  # from the first release


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 21), (5, 64)])
def test_equals_the_reference(bits, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ours, reference = (
        jax.jit(op, static_argnums=(2, 4))(KEY, x, 0.4, None, bits) for op in (dropout, dropout_reference)
    )
    assert 0 < int((ours == 0).sum()) < ours.size
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("op", [dropout, dropout_reference])
def test_sixteen_bits_match_the_rate_and_eight_bits_round_it(op):
    x = jnp.ones((2048, 1024))
    for bits, rate in ((8, 26 / 256), (16, 0.1)):
        y = op(KEY, x, 0.1, None, bits)
        assert float((y == 0).mean()) == pytest.approx(rate, abs=4 * (0.09 / x.size) ** 0.5)
        assert float(y.max()) == pytest.approx(1 / (1 - rate), abs=2**-16)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_mask_of_a_row_depends_on_its_id_alone(bits):
    x = jnp.ones((6, 40))
    full = dropout(KEY, x, 0.5, None, bits)
    order = jnp.array([4, 1, 5])
    np.testing.assert_array_equal(dropout(KEY, x[:3], 0.5, order, bits), full[order])
    assert len(np.unique(full, axis=0)) == 6


def test_masks_equal_those_of_the_first_release():
    dropped = dropout(jax.random.key(0), jnp.ones((2, 12)), 0.5) == 0
    assert ["".join("01"[int(d)] for d in row) for row in dropped] == MASKS
