"""Sampling: what is drawn, and how often."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captioner import MODEL, PAD, next_log_probs, random_captioner

from caption_jax.decoding import greedy, sample
from caption_jax.decoding.constraints import banned_tokens
from caption_jax.decoding.sampling import keep_top_k, nucleus

KEY = jax.random.key(0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_come_as_often_as_the_model_says(temperature):
    variables, memory = random_captioner(0, images=1)
    (table,) = next_log_probs(variables, memory)
    draws = sample(MODEL, variables, memory, KEY, max_length=3, draws=4000, temperature=temperature)
    tokens = np.asarray(draws.all_tokens)[0]
    expected = np.exp(table[()] / temperature)
    expected /= expected.sum()
    share = np.bincount(tokens[:, 0], minlength=6) / 4000
    np.testing.assert_allclose(share, expected, atol=4 * (0.25 / 4000) ** 0.5)
    after = tokens[tokens[:, 0] == 3, 1]  # the second token, given the first
    expected = np.exp(table[(3,)] / temperature)
    share = np.bincount(after, minlength=6) / len(after)
    np.testing.assert_allclose(share, expected / expected.sum(), atol=4 * (0.25 / len(after)) ** 0.5)
    scores = table[()][tokens[:, 0]]
    np.testing.assert_allclose(draws.all_token_log_probs[0, :, 0], scores, atol=1e-5)  # the model's own


def test_the_likeliest_of_one_is_greedy():
    variables, memory = random_captioner(1, images=4)
    best = greedy(MODEL, variables, memory, max_length=5).tokens
    one = sample(MODEL, variables, memory, KEY, max_length=5, draws=3, top_k=1)
    narrow = sample(MODEL, variables, memory, KEY, max_length=5, draws=3, top_p=0.01)
    for drawn in (one, narrow):
        np.testing.assert_array_equal(drawn.all_tokens, np.repeat(best[:, None], 3, axis=1))


def test_draws_differ_and_are_repeated_by_the_same_key():
    variables, memory = random_captioner(1)
    words_only = [banned_tokens([0, PAD])]
    run = jax.jit(lambda key: sample(MODEL, variables, memory, key, max_length=5, draws=8, constraints=words_only))
    first, again, other = run(KEY), run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(first.all_tokens, again.all_tokens)
    assert not np.array_equal(first.all_tokens, other.all_tokens)
    assert len({tuple(row) for row in first.all_tokens[0].tolist()}) > 3
    sums = np.where(np.asarray(first.all_tokens) == PAD, 0, first.all_token_log_probs).sum(-1)
    np.testing.assert_allclose(first.all_log_probs, sums, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=7, max_size=7), st.floats(0.01, 0.999))
def test_nucleus_is_the_fewest_tokens_that_have_the_mass(logits, mass):
    logits = np.array([logits], np.float32) / 2
    kept = np.isfinite(np.asarray(_nucleus(logits[None], mass)))[0, 0]
    probs = np.exp(logits[0] - logits.max(), dtype=np.float64)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if np.abs(np.cumsum(probs[order]) - mass).min() < 1e-5:
        return  # float32 cannot tell
    least = probs[order][np.searchsorted(np.cumsum(probs[order]), mass)]
    np.testing.assert_array_equal(kept, probs >= least - 1e-9)


_nucleus = jax.jit(nucleus)


def test_filters_by_example():
    log_probs = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
    assert np.isfinite(nucleus(log_probs, 0.6)).tolist() == [[[True, True, False]]]
    assert np.isfinite(nucleus(log_probs, 1.0)).all() and np.isfinite(nucleus(log_probs, jnp.array(1.0))).all()
    assert np.isfinite(keep_top_k(log_probs, 2)).tolist() == [[[True, True, False]]]
    assert np.isfinite(keep_top_k(log_probs, 0)).all() and np.isfinite(keep_top_k(log_probs, 9)).all()
