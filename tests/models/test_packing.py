"""Packed tokens: the decoder without pads says what it says with them, dropout included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.models.decoder import Decoder
from caption_jax.models.packing import Packing
from input_pipeline.packing import packed_places

BATCH, CAPTIONS, LENGTH, WIDTH, VOCABULARY = 4, 4, 25, 24, 30


def make_tokens(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    tokens = np.ones((BATCH, CAPTIONS, LENGTH + 1), np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        words = random.integers(1, LENGTH - 1)
        caption[: words + 2] = [0, *random.integers(4, VOCABULARY, words), 2]
    return tokens


def packing_of(tokens: np.ndarray, mask: np.ndarray, groups: int) -> Packing:
    shape = (BATCH, CAPTIONS, LENGTH)
    return Packing.of(jnp.asarray(packed_places(tokens, mask, groups)), shape)


@pytest.mark.parametrize("groups", [1, 2])
def test_tokens_come_back_to_their_places_and_pads_are_nothing(groups):
    tokens, mask = make_tokens(), np.array([True, True, False, True])
    real = (tokens[..., 1:] != 1) & mask[:, None, None]
    packing = packing_of(tokens, mask, groups)
    x = np.random.default_rng(1).normal(size=(BATCH, CAPTIONS, LENGTH, 5)).astype(np.float32)
    there = packing.pack(jnp.asarray(x))
    assert there.shape[-2] < real.size / groups  # it is pads that were left out
    np.testing.assert_array_equal(packing.unpack(there), np.where(real[..., None], x, 0))
    back = jax.grad(lambda x: (packing.pack(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(back, np.where(real[..., None], 2 * x, 0), rtol=1e-6)
    back = jax.grad(lambda y: (packing.unpack(y) ** 2).sum())(there)
    np.testing.assert_allclose(back, 2 * there, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_decoder_without_pads_gives_what_it_gives_with_them(groups):
    tokens, mask = make_tokens(), np.ones(BATCH, bool)
    memory = jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, 6, WIDTH)), jnp.float32)
    decoder = Decoder(VOCABULARY, 2, WIDTH, 3, 48, dropout=0.3, max_length=LENGTH)
    variables = jax.jit(decoder.init)(jax.random.key(0), tokens[..., :-1], memory)
    packing = packing_of(tokens, mask, groups)

    @jax.jit
    def run(variables, packing):
        rngs = {"dropout": jax.random.key(1)}
        return decoder.apply(variables, tokens[..., :-1], memory, packing=packing, train=True, rngs=rngs).logits

    logits, packed = run(variables, None), packing.unpack(run(variables, packing))
    real = (tokens[..., 1:] != 1)[..., None]
    np.testing.assert_allclose(np.where(real, packed, 0), np.where(real, logits, 0), atol=1e-5)

    ours = jax.grad(lambda v: (packing.unpack(run(v, packing)) ** 2 * real).sum())(variables)
    plain = jax.grad(lambda v: (run(v, None) ** 2 * real).sum())(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)


def test_few_sizes_occur():
    random = np.random.default_rng(3)
    sizes = set()
    for _ in range(200):
        tokens = np.ones((64, 5, 23), np.int32)
        lengths = random.integers(2, 23, (64, 5))
        tokens[np.arange(23) < lengths[..., None]] = 7
        places = packed_places(tokens, np.ones(64, bool), 1)
        count = (lengths - 1).sum()
        np.testing.assert_array_equal(places[0, :count], np.flatnonzero((tokens[..., 1:] != 1).ravel()))
        assert (places[0, count:] == 64 * 5 * 22).all()
        sizes.add(places.shape[1])
    assert len(sizes) < 8 and max(sizes) < 0.65 * 64 * 5 * 22
