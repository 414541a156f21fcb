"""Layers shared by several modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.models.layers import Dropout


def test_dropout_accepts_rates_near_zero_and_one():
    x, rngs = jnp.ones((8, 1024)), {"dropout": jax.random.key(0)}
    assert 0 < float((Dropout(0.001).apply({}, x, train=True, rngs=rngs) == 0).mean()) < 0.01
    assert bool(jnp.isfinite(Dropout(0.999).apply({}, x, train=True, rngs=rngs)).all())
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match="dropout"):
            Dropout(rate).apply({}, x, train=True, rngs=rngs)


def test_dropout_preserves_the_mean_and_drops_elements_independently():
    x = jnp.ones((64, 1001))
    y = Dropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert y.shape == x.shape
    assert float((y == 0).mean()) == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(y)) == {0.0, np.float32(256 / 192)}
    column_rates = np.asarray(y == 0).mean(0)
    assert column_rates.std() == pytest.approx((0.25 * 0.75 / 64) ** 0.5, rel=0.1)
    # The four elements from each 32-bit sample are independent.
    correlations = np.corrcoef(np.asarray(y[:, :1000]).reshape(-1, 4).T)
    assert np.abs(correlations - np.eye(4)).max() < 0.05
