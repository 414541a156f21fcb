from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from program_figures import compute_figures
from shape_checks import unchecked_shapes

from caption_jax.ops.cross_entropy import token_cross_entropy, vocabulary_cross_entropy


def _problem(seed: int = 0, shape: tuple[int, ...] = (2, 3, 5), vocabulary: int = 31):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, vocabulary)).astype(np.float32) * 3
    targets = rng.integers(0, vocabulary, shape).astype(np.int32)
    weights = (rng.random(shape) < 0.7).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)


def _reference(logits, targets, weights, smoothing):
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return jnp.sum(optax.softmax_cross_entropy(logits, labels) * weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("level", [0.0, -300.0, 1e4])
def test_the_loss_of_uniform_logits_is_the_log_of_the_vocabulary(smoothing, level):
    vocabulary = 4000
    _, targets, weights = _problem(vocabulary=vocabulary)
    loss = token_cross_entropy(jnp.full((*targets.shape, vocabulary), level), targets, weights, smoothing)
    assert float(loss.loss_sum / loss.weight_sum) == pytest.approx(np.log(vocabulary), rel=2e-4 if level else 1e-6)


def test_the_loss_of_peaked_logits_is_nearly_zero():
    _, targets, weights = _problem(vocabulary=4000)
    logits = 20.0 * jax.nn.one_hot(targets, 4000)
    loss = token_cross_entropy(logits, targets, weights)
    assert 0 <= float(loss.loss_sum / loss.weight_sum) < 1e-3
    assert float(loss.correct_sum) == float(weights.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_value_and_gradient_equal_the_reference(smoothing):
    logits, targets, weights = _problem()
    ours, gradient = jax.value_and_grad(lambda z: token_cross_entropy(z, targets, weights, smoothing).loss_sum)(logits)
    reference, expected = jax.value_and_grad(_reference)(logits, targets, weights, smoothing)
    np.testing.assert_allclose(ours, reference, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_gradient_scales_with_the_cotangent():
    logits, targets, weights = _problem()

    def mean(z):
        loss = token_cross_entropy(z, targets, weights, 0.1)
        return 3 * loss.loss_sum / loss.weight_sum

    expected = jax.grad(lambda z: 3 * _reference(z, targets, weights, 0.1) / weights.sum())(logits)
    np.testing.assert_allclose(jax.grad(mean)(logits), expected, atol=1e-6)


def test_tokens_without_weight_are_ignored_even_if_not_finite():
    logits, targets, weights = _problem()
    broken = jnp.where(weights[..., None] == 0, jnp.nan, logits)

    def total(z):
        return token_cross_entropy(z, targets, weights, 0.1).loss_sum

    assert float(total(broken)) == float(total(logits))
    gradient = jax.grad(total)(broken)
    assert bool(jnp.all(jnp.where(weights[..., None] == 0, gradient == 0, jnp.isfinite(gradient))))


def test_nonfinite_tokens_with_weight_are_not_hidden():
    logits, targets, _ = _problem()
    logits = logits.at[0, 0, 0].set(jnp.nan)
    assert not np.isfinite(float(token_cross_entropy(logits, targets, jnp.ones(targets.shape)).loss_sum))


def test_large_logits_stay_finite():
    logits, targets, weights = _problem()
    loss, gradient = jax.value_and_grad(lambda z: token_cross_entropy(z, targets, weights, 0.1).loss_sum)(logits * 1e6)
    assert np.isfinite(float(loss)) and bool(jnp.all(jnp.isfinite(gradient)))


def test_accuracy_counts_the_correct_weighted_tokens():
    logits, targets, weights = _problem()
    expected = float(jnp.sum((jnp.argmax(logits, -1) == targets) * weights))
    loss = token_cross_entropy(logits.at[0, 0, 0, targets[0, 0, 0]].set(99.0), targets, weights.at[0, 0, 0].set(2.0))
    right_before = float((jnp.argmax(logits[0, 0, 0]) == targets[0, 0, 0]) * weights[0, 0, 0])
    assert float(loss.correct_sum) == expected - right_before + 2
    assert float(loss.weight_sum) == float(weights.sum() - weights[0, 0, 0]) + 2


def test_microbatches_add_up():
    logits, targets, weights = _problem(shape=(4, 3, 5))
    full = token_cross_entropy(logits, targets, weights, 0.1)
    halves = [token_cross_entropy(logits[i::2], targets[i::2], weights[i::2], 0.1) for i in range(2)]
    np.testing.assert_allclose(jax.tree.map(jnp.add, *halves), full, rtol=1e-6)


def test_low_precision_logits_are_summed_in_float32_and_have_gradients_of_their_dtype():
    logits, targets, weights = _problem(shape=(64, 16), vocabulary=1000)
    low = logits.astype(jnp.bfloat16)

    def total(z):
        return token_cross_entropy(z, targets, weights, 0.1).loss_sum

    value, gradient = jax.value_and_grad(total)(low)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, total(low.astype(jnp.float32)), rtol=1e-6)


def test_only_the_gradient_needs_memory():
    logits, targets, weights = _problem(shape=(256,), vocabulary=4000)
    step = jax.jit(jax.grad(lambda z: token_cross_entropy(z, targets, weights, 0.1).loss_sum))
    lowered = step.lower(logits)
    figures = compute_figures(lowered, lowered.compile())
    assert figures["memory"]["temporaries"] < 0.05 * logits.nbytes


def test_incompatible_shapes_are_rejected():
    logits, targets, weights = _problem()
    with pytest.raises(ValueError, match=r"label_smoothing must be .*, got 1\.0"):
        token_cross_entropy(logits, targets, weights, 1.0)
    with unchecked_shapes(), pytest.raises(ValueError, match="targets and weights of shape"):
        token_cross_entropy(logits[:, :, 1:], targets, weights)


@pytest.mark.parametrize("shape", [(700,), (2, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_computed_from_states_give_the_same_result(shape, smoothing):
    _, targets, weights = _problem(shape=shape)
    rng = np.random.default_rng(1)
    states, table, bias = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((*shape, 8), (31, 8), (31,)))

    def whole(states, table, bias):
        loss = token_cross_entropy(states @ table.T + bias, targets, weights, smoothing)
        return loss.loss_sum / loss.weight_sum, loss

    def chunks(states, table, bias):
        loss = vocabulary_cross_entropy(states, table, bias, targets, weights, smoothing)
        return loss.loss_sum / loss.weight_sum, loss

    both = [jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(states, table, bias) for f in (whole, chunks)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), *both)
