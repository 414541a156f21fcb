"""Tokens are split into chunks that contain an equal part of each device's tokens, and merged again."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops.token_chunks import TokenChunks


@pytest.mark.parametrize("size", [1, 4, 12, 1000])
@pytest.mark.parametrize(("shape", "shards"), [((4, 3, 2), 1), ((4, 3, 2), 2), ((4, 6), 4), ((24,), 1)])
def test_merging_inverts_splitting(shape, shards, size):
    chunks = TokenChunks(shape, size, shards)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 5)), jnp.float32)
    pieces = chunks.split(x)
    assert pieces.shape == (chunks.count, *chunks.axes, 5)
    assert chunks.axes[-1] <= size and chunks.count * chunks.axes[-1] >= 24 // shards
    np.testing.assert_array_equal(chunks.merge(pieces), x)
    np.testing.assert_allclose(pieces.sum(), x.sum(), rtol=1e-5)  # padding is zero


def test_a_chunk_contains_consecutive_tokens_of_each_device():
    pieces = TokenChunks((4, 3), max_size=2, shards=2).split(jnp.arange(12))
    np.testing.assert_array_equal(pieces, [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]])


@pytest.mark.parametrize(
    ("tokens", "max_size", "count", "size"),
    [(624, 512, 2, 312), (1024, 512, 2, 512), (100, 512, 1, 100), (1300, 512, 3, 440), (10, 3, 4, 3)],
)
def test_tokens_are_distributed_evenly_over_as_few_chunks_as_possible(tokens, max_size, count, size):
    chunks = TokenChunks((tokens,), max_size)
    assert (chunks.count, chunks.size) == (count, size)


def test_axes_that_cannot_be_split_evenly_over_the_devices_are_rejected():
    with pytest.raises(ValueError, match=r"\(3, 4\) evenly over 2 devices"):
        TokenChunks((3, 4), 2, shards=2)
