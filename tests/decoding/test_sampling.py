"""Sampling: distributions, seeds and filters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captioner import MODEL, PAD, compute_next_log_probs, make_random_captioner

from caption_jax.decoding import greedy, sample
from caption_jax.decoding.constraints import banned_tokens
from caption_jax.decoding.sampling import draw_tokens, keep_top_k, keep_top_p

KEY = jax.random.key(0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_model_distribution(temperature):
    variables, memory = make_random_captioner(0, images=1)
    (table,) = compute_next_log_probs(variables, memory)
    samples = sample(MODEL, variables, memory, KEY, max_length=3, num_samples=4000, temperature=temperature)
    tokens = np.asarray(samples.all_tokens)[0]
    expected = np.exp(table[()] / temperature)
    expected /= expected.sum()
    fraction = np.bincount(tokens[:, 0], minlength=6) / 4000
    np.testing.assert_allclose(fraction, expected, atol=4 * (0.25 / 4000) ** 0.5)
    second_tokens = tokens[tokens[:, 0] == 3, 1]  # of the samples that start with token 3
    expected = np.exp(table[(3,)] / temperature)
    fraction = np.bincount(second_tokens, minlength=6) / len(second_tokens)
    np.testing.assert_allclose(fraction, expected / expected.sum(), atol=4 * (0.25 / len(second_tokens)) ** 0.5)
    log_probs = table[()][tokens[:, 0]]
    np.testing.assert_allclose(samples.all_token_log_probs[0, :, 0], log_probs, atol=1e-5)  # without the temperature


def test_top_1_and_small_top_p_match_greedy_decoding():
    variables, memory = make_random_captioner(1, images=4)
    best = greedy(MODEL, variables, memory, max_length=5).tokens
    top_1 = sample(MODEL, variables, memory, KEY, max_length=5, num_samples=3, top_k=1)
    small_nucleus = sample(MODEL, variables, memory, KEY, max_length=5, num_samples=3, top_p=0.01)
    for samples in (top_1, small_nucleus):
        np.testing.assert_array_equal(samples.all_tokens, np.repeat(best[:, None], 3, axis=1))


def test_samples_vary_and_depend_only_on_the_key():
    variables, memory = make_random_captioner(1)
    no_special_tokens = [banned_tokens([0, PAD])]
    run = jax.jit(
        lambda key: sample(MODEL, variables, memory, key, max_length=5, num_samples=8, constraints=no_special_tokens)
    )
    first, repeated, other = run(KEY), run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(first.all_tokens, repeated.all_tokens)
    assert not np.array_equal(first.all_tokens, other.all_tokens)
    assert len({tuple(caption) for caption in first.all_tokens[0].tolist()}) > 3
    sums = np.where(np.asarray(first.all_tokens) == PAD, 0, first.all_token_log_probs).sum(-1)
    np.testing.assert_allclose(first.all_log_probs, sums, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=7, max_size=7), st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits, top_p):
    logits = np.array([logits], np.float32) / 2
    is_in_nucleus = np.isfinite(np.asarray(_jitted_nucleus(logits[None], top_p)))[0, 0]
    probs = np.exp(logits[0] - logits.max(), dtype=np.float64)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if np.abs(np.cumsum(probs[order]) - top_p).min() < 1e-5:
        return  # ambiguous in float32
    threshold = probs[order][np.searchsorted(np.cumsum(probs[order]), top_p)]
    np.testing.assert_array_equal(is_in_nucleus, probs >= threshold - 1e-9)


_jitted_nucleus = jax.jit(keep_top_p)


def test_top_p_and_top_k_examples():
    log_probs = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]]))
    assert np.isfinite(keep_top_p(log_probs, 0.6)).tolist() == [[[True, True, False]]]
    assert np.isfinite(keep_top_p(log_probs, 1.0)).all() and np.isfinite(keep_top_p(log_probs, jnp.array(1.0))).all()
    assert np.isfinite(keep_top_k(log_probs, 2)).tolist() == [[[True, True, False]]]
    assert np.isfinite(keep_top_k(log_probs, 0)).all() and np.isfinite(keep_top_k(log_probs, 9)).all()


@pytest.mark.parametrize("vocabulary_size", [1, 6, 100, 5003])
def test_tokens_are_drawn_by_inverting_the_cumulative_distribution(vocabulary_size):
    rng = np.random.default_rng(0)
    probs = rng.exponential(size=(2, 500, vocabulary_size)) * (rng.random((2, 500, vocabulary_size)) < 0.5)
    probs[..., -1] += probs.sum(-1) == 0
    uniforms = rng.random((2, 500)).astype(np.float32)
    uniforms[:, 0], uniforms[:, 1] = 0, 1 - 2**-24
    with np.errstate(divide="ignore"):
        tokens = np.asarray(draw_tokens(jnp.log(probs.astype(np.float32)) + 3, jnp.asarray(uniforms)))
    cumulative = np.cumsum(probs, -1) / probs.sum(-1, keepdims=True)
    expected = (cumulative <= uniforms[..., None].astype(np.float64)).sum(-1)
    distance = np.abs(cumulative - uniforms[..., None]).min(-1)
    is_clear = distance > 1e-5  # otherwise, rounding may select the neighbour
    assert (tokens == expected)[is_clear].all() and is_clear.mean() > 0.8
    assert (np.take_along_axis(probs, tokens[..., None], -1) > 0).all()
