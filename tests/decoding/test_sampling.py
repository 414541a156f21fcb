"""Sampling: distributions, seeds and filters."""

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
from caption_jax.decoding.sampling import keep_top_k, keep_top_p

KEY = jax.random.key(0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution_of_the_model(temperature):
    variables, memory = random_captioner(0, images=1)
    (table,) = next_log_probs(variables, memory)
    samples = sample(MODEL, variables, memory, KEY, max_length=3, num_samples=4000, temperature=temperature)
    tokens = np.asarray(samples.all_tokens)[0]
    expected = np.exp(table[()] / temperature)
    expected /= expected.sum()
    fraction = np.bincount(tokens[:, 0], minlength=6) / 4000
    np.testing.assert_allclose(fraction, expected, atol=4 * (0.25 / 4000) ** 0.5)
    after = tokens[tokens[:, 0] == 3, 1]  # second tokens after token 3
    expected = np.exp(table[(3,)] / temperature)
    fraction = np.bincount(after, minlength=6) / len(after)
    np.testing.assert_allclose(fraction, expected / expected.sum(), atol=4 * (0.25 / len(after)) ** 0.5)
    scores = table[()][tokens[:, 0]]
    np.testing.assert_allclose(samples.all_token_log_probs[0, :, 0], scores, atol=1e-5)  # without the temperature


def test_sampling_from_the_most_likely_token_is_greedy():
    variables, memory = random_captioner(1, images=4)
    best = greedy(MODEL, variables, memory, max_length=5).tokens
    top_1 = sample(MODEL, variables, memory, KEY, max_length=5, num_samples=3, top_k=1)
    small_nucleus = sample(MODEL, variables, memory, KEY, max_length=5, num_samples=3, top_p=0.01)
    for samples in (top_1, small_nucleus):
        np.testing.assert_array_equal(samples.all_tokens, np.repeat(best[:, None], 3, axis=1))


def test_samples_differ_and_depend_on_the_key_only():
    variables, memory = random_captioner(1)
    words_only = [banned_tokens([0, PAD])]
    run = jax.jit(
        lambda key: sample(MODEL, variables, memory, key, max_length=5, num_samples=8, constraints=words_only)
    )
    first, again, other = run(KEY), run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(first.all_tokens, again.all_tokens)
    assert not np.array_equal(first.all_tokens, other.all_tokens)
    assert len({tuple(row) for row in first.all_tokens[0].tolist()}) > 3
    sums = np.where(np.asarray(first.all_tokens) == PAD, 0, first.all_token_log_probs).sum(-1)
    np.testing.assert_allclose(first.all_log_probs, sums, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=7, max_size=7), st.floats(0.01, 0.999))
def test_nucleus_is_the_smallest_set_with_the_mass(logits, mass):
    logits = np.array([logits], np.float32) / 2
    kept = np.isfinite(np.asarray(_keep_top_p(logits[None], mass)))[0, 0]
    probs = np.exp(logits[0] - logits.max(), dtype=np.float64)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if np.abs(np.cumsum(probs[order]) - mass).min() < 1e-5:
        return  # ambiguous in float32
    least = probs[order][np.searchsorted(np.cumsum(probs[order]), mass)]
    np.testing.assert_array_equal(kept, probs >= least - 1e-9)


_keep_top_p = jax.jit(keep_top_p)


def test_filter_examples():
    log_probs = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
    assert np.isfinite(keep_top_p(log_probs, 0.6)).tolist() == [[[True, True, False]]]
    assert np.isfinite(keep_top_p(log_probs, 1.0)).all() and np.isfinite(keep_top_p(log_probs, jnp.array(1.0))).all()
    assert np.isfinite(keep_top_k(log_probs, 2)).tolist() == [[[True, True, False]]]
    assert np.isfinite(keep_top_k(log_probs, 0)).all() and np.isfinite(keep_top_k(log_probs, 9)).all()
