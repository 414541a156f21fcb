"""Token cross-entropy: agreement with optax, gradients, numerical stability."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from program_stats import compute_stats
from shape_checks import unchecked_shapes

from caption_jax.ops import cross_entropy
from caption_jax.ops.cross_entropy import (
    token_cross_entropy,
    vocabulary_cross_entropy,
    vocabulary_cross_entropy_reference,
)


def make_inputs(seed: int = 0, shape: tuple[int, ...] = (2, 3, 5), vocabulary_size: int = 31):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, vocabulary_size)).astype(np.float32) * 3
    targets = rng.integers(0, vocabulary_size, shape).astype(np.int32)
    weights = (rng.random(shape) < 0.7).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)


def compute_reference_loss(logits, targets, weights, smoothing):
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return jnp.sum(optax.softmax_cross_entropy(logits, labels) * weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("logit", [0.0, -300.0, 1e4])
def test_the_loss_of_equal_logits_is_the_log_of_the_vocabulary_size(smoothing, logit):
    vocabulary_size = 4000
    _, targets, weights = make_inputs(vocabulary_size=vocabulary_size)
    loss = token_cross_entropy(jnp.full((*targets.shape, vocabulary_size), logit), targets, weights, smoothing)
    assert float(loss.loss_sum / loss.weight_sum) == pytest.approx(np.log(vocabulary_size), rel=2e-4 if logit else 1e-6)


def test_the_loss_of_peaked_logits_is_nearly_zero():
    _, targets, weights = make_inputs(vocabulary_size=4000)
    logits = 20.0 * jax.nn.one_hot(targets, 4000)
    loss = token_cross_entropy(logits, targets, weights)
    assert 0 <= float(loss.loss_sum / loss.weight_sum) < 1e-3
    assert float(loss.correct_sum) == float(weights.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_and_gradient_equal_the_reference(smoothing):
    logits, targets, weights = make_inputs()
    loss, gradient = jax.value_and_grad(lambda z: token_cross_entropy(z, targets, weights, smoothing).loss_sum)(logits)
    expected_loss, expected_gradient = jax.value_and_grad(compute_reference_loss)(logits, targets, weights, smoothing)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_the_gradient_scales_with_the_cotangent():
    logits, targets, weights = make_inputs()

    def scaled_mean_loss(z):
        loss = token_cross_entropy(z, targets, weights, 0.1)
        return 3 * loss.loss_sum / loss.weight_sum

    expected = jax.grad(lambda z: 3 * compute_reference_loss(z, targets, weights, 0.1) / weights.sum())(logits)
    np.testing.assert_allclose(jax.grad(scaled_mean_loss)(logits), expected, atol=1e-6)


def test_tokens_with_zero_weight_do_not_contribute_even_if_their_logits_are_nan():
    logits, targets, weights = make_inputs()
    nan_logits = jnp.where(weights[..., None] == 0, jnp.nan, logits)

    def loss_sum(z):
        return token_cross_entropy(z, targets, weights, 0.1).loss_sum

    assert float(loss_sum(nan_logits)) == float(loss_sum(logits))
    gradient = jax.grad(loss_sum)(nan_logits)
    assert bool(jnp.all(jnp.where(weights[..., None] == 0, gradient == 0, jnp.isfinite(gradient))))


def test_nan_logits_of_tokens_with_nonzero_weight_give_a_nonfinite_loss():
    logits, targets, _ = make_inputs()
    logits = logits.at[0, 0, 0].set(jnp.nan)
    assert not np.isfinite(float(token_cross_entropy(logits, targets, jnp.ones(targets.shape)).loss_sum))


def test_large_logits_give_a_finite_loss_and_gradient():
    logits, targets, weights = make_inputs()
    loss, gradient = jax.value_and_grad(lambda z: token_cross_entropy(z, targets, weights, 0.1).loss_sum)(logits * 1e6)
    assert np.isfinite(float(loss)) and bool(jnp.all(jnp.isfinite(gradient)))


def test_correct_sum_is_the_weight_of_correctly_predicted_tokens():
    logits, targets, weights = make_inputs()
    correct_before = float(jnp.sum((jnp.argmax(logits, -1) == targets) * weights))
    loss = token_cross_entropy(logits.at[0, 0, 0, targets[0, 0, 0]].set(99.0), targets, weights.at[0, 0, 0].set(2.0))
    first_before = float((jnp.argmax(logits[0, 0, 0]) == targets[0, 0, 0]) * weights[0, 0, 0])
    assert float(loss.correct_sum) == correct_before - first_before + 2
    assert float(loss.weight_sum) == float(weights.sum() - weights[0, 0, 0]) + 2


def test_sums_of_microbatches_equal_the_sum_of_the_batch():
    logits, targets, weights = make_inputs(shape=(4, 3, 5))
    expected = token_cross_entropy(logits, targets, weights, 0.1)
    microbatches = [token_cross_entropy(logits[i::2], targets[i::2], weights[i::2], 0.1) for i in range(2)]
    np.testing.assert_allclose(jax.tree.map(jnp.add, *microbatches), expected, rtol=1e-6)


def test_the_loss_of_bfloat16_logits_is_summed_in_float32_and_their_gradient_is_bfloat16():
    logits, targets, weights = make_inputs(shape=(64, 16), vocabulary_size=1000)
    rounded_logits = logits.astype(jnp.bfloat16)

    def loss_sum(z):
        return token_cross_entropy(z, targets, weights, 0.1).loss_sum

    loss, gradient = jax.value_and_grad(loss_sum)(rounded_logits)
    assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, loss_sum(rounded_logits.astype(jnp.float32)), rtol=1e-6)


def test_the_gradient_is_the_only_array_as_large_as_the_logits():
    logits, targets, weights = make_inputs(shape=(256,), vocabulary_size=4000)
    step = jax.jit(jax.grad(lambda z: token_cross_entropy(z, targets, weights, 0.1).loss_sum))
    lowered = step.lower(logits)
    stats = compute_stats(lowered, lowered.compile())
    assert stats["memory"]["temporaries"] < 0.05 * logits.nbytes


def test_invalid_smoothing_and_incompatible_shapes_are_rejected():
    logits, targets, weights = make_inputs()
    with pytest.raises(ValueError, match=r"label_smoothing must be .*, got 1\.0"):
        token_cross_entropy(logits, targets, weights, 1.0)
    with unchecked_shapes(), pytest.raises(ValueError, match="targets and weights of shape"):
        token_cross_entropy(logits[:, :, 1:], targets, weights)


def make_states(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Returns decoder states, and the weights and bias of an output layer with 31 tokens."""
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((*shape, 8), (31, 8), (31,)))


def compute_mean_loss(states, embedding, bias, targets, weights, smoothing=0.0, op=vocabulary_cross_entropy, shards=1):
    loss = op(states, embedding, bias, targets, weights, smoothing, shards=shards)
    return loss.loss_sum / loss.weight_sum, loss


differentiate_loss = jax.value_and_grad(compute_mean_loss, argnums=(0, 1, 2), has_aux=True)


@pytest.mark.parametrize(("shape", "shards"), [((700,), 1), ((2, 3), 1), ((8, 3, 50), 1), ((8, 3, 50), 4), ((4, 6), 2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [7, 512])
def test_the_loss_in_chunks_equals_the_reference(shape, shards, smoothing, chunk_size, monkeypatch):
    monkeypatch.setitem(cross_entropy._CHUNK_SIZES, "cpu", chunk_size)
    arguments = (*make_states(shape), *make_inputs(shape=shape)[1:], smoothing)
    actual = differentiate_loss(*arguments, shards=shards)
    expected = differentiate_loss(*arguments, op=vocabulary_cross_entropy_reference)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.usefixtures("eight_devices")
def test_eight_devices_reduce_gradients_once_for_all_chunks(monkeypatch):
    monkeypatch.setitem(cross_entropy._CHUNK_SIZES, "cpu", 7)
    shape = (8, 3, 50)
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    sharded, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    arguments = (*make_states(shape), *make_inputs(shape=shape)[1:])
    step = jax.jit(
        functools.partial(differentiate_loss, smoothing=0.1, shards=8),
        in_shardings=(sharded, everywhere, everywhere, sharded, sharded),
        out_shardings=(everywhere, (sharded, everywhere, everywhere)),
    )
    lowered = step.lower(*arguments)
    compiled = lowered.compile()
    single = differentiate_loss(*arguments, 0.1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), compiled(*arguments), single)
    stats = compute_stats(lowered, compiled, mesh)
    assert {group["kind"] for group in stats["collectives"]} == {"all-reduce"}
    assert not any("while" in source for group in stats["collectives"] for source in group["sources"])


@pytest.mark.parametrize("op", [vocabulary_cross_entropy, vocabulary_cross_entropy_reference])
def test_the_loss_without_gradients_is_the_same(op):
    arguments = (*make_states((8, 30)), *make_inputs(shape=(8, 30))[1:])
    expected = differentiate_loss(*arguments, 0.1)[0]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), compute_mean_loss(*arguments, 0.1, op), expected
    )
