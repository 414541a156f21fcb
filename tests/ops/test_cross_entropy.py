"""Cross-entropy over the vocabulary: agreement with optax, gradients, numerical stability, memory."""

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
from caption_jax.ops.cross_entropy import TokenLoss, vocabulary_cross_entropy, vocabulary_cross_entropy_reference

OPS = pytest.mark.parametrize("op", [vocabulary_cross_entropy, vocabulary_cross_entropy_reference])


def make_inputs(seed: int = 0, shape: tuple[int, ...] = (2, 3, 5), vocabulary_size: int = 31):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, vocabulary_size)).astype(np.float32) * 3
    targets = rng.integers(0, vocabulary_size, shape).astype(np.int32)
    weights = (rng.random(shape) < 0.7).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)


def compute_loss(logits, targets, weights, smoothing=0.0, op=vocabulary_cross_entropy) -> TokenLoss:
    """Computes the loss of logits: of states that equal them, before an output layer that is the identity."""
    vocabulary_size = logits.shape[-1]
    return op(logits, jnp.eye(vocabulary_size), jnp.zeros(vocabulary_size), targets, weights, smoothing)


def compute_optax_loss(logits, targets, weights, smoothing):
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return jnp.sum(optax.softmax_cross_entropy(logits, labels) * weights)


def make_states(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Returns decoder states, and the weights and bias of an output layer with 31 tokens."""
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((*shape, 8), (31, 8), (31,)))


def compute_mean_loss(states, embedding, bias, targets, weights, smoothing=0.0, op=vocabulary_cross_entropy, shards=1):
    loss = op(states, embedding, bias, targets, weights, smoothing, shards=shards)
    return loss.loss_sum / loss.weight_sum, loss


def differentiate_loss(states, embedding, bias, targets, weights, smoothing=0.0, op=vocabulary_cross_entropy, shards=1):
    """Computes the mean loss and its gradients in one program, which is faster than one for each operation."""
    compute = functools.partial(compute_mean_loss, smoothing=smoothing, op=op, shards=shards)
    differentiate = jax.jit(jax.value_and_grad(compute, argnums=(0, 1, 2), has_aux=True))
    return differentiate(states, embedding, bias, targets, weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("logit", [0.0, -300.0, 1e4])
@OPS
def test_the_loss_of_equal_logits_is_the_log_of_the_vocabulary_size(smoothing, logit, op):
    vocabulary_size = 4000
    _, targets, weights = make_inputs(vocabulary_size=vocabulary_size)
    output_layer = jnp.zeros((vocabulary_size, 8)), jnp.full(vocabulary_size, logit)
    compute = jax.jit(functools.partial(op, label_smoothing=smoothing))
    loss = compute(jnp.ones((*targets.shape, 8)), *output_layer, targets, weights)
    assert float(loss.loss_sum / loss.weight_sum) == pytest.approx(np.log(vocabulary_size), rel=2e-4 if logit else 1e-6)


@OPS
def test_the_loss_of_peaked_logits_is_nearly_zero(op):
    _, targets, weights = make_inputs(vocabulary_size=400)
    loss = compute_loss(20.0 * jax.nn.one_hot(targets, 400), targets, weights, op=op)
    assert 0 <= float(loss.loss_sum / loss.weight_sum) < 1e-3
    assert float(loss.correct_sum) == float(weights.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@OPS
def test_loss_and_gradient_equal_those_of_optax(smoothing, op):
    logits, targets, weights = make_inputs()
    loss_sum = functools.partial(compute_loss, smoothing=smoothing, op=op)
    differentiate = jax.jit(jax.value_and_grad(lambda *arguments: loss_sum(*arguments).loss_sum))
    loss, gradient = differentiate(logits, targets, weights)
    expected = jax.jit(jax.value_and_grad(functools.partial(compute_optax_loss, smoothing=smoothing)))
    expected_loss, expected_gradient = expected(logits, targets, weights)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_the_gradient_scales_with_the_cotangent():
    logits, targets, weights = make_inputs()

    def scaled_mean_loss(z):
        loss = compute_loss(z, targets, weights, 0.1)
        return 3 * loss.loss_sum / loss.weight_sum

    expected = jax.grad(lambda z: 3 * compute_optax_loss(z, targets, weights, 0.1) / weights.sum())(logits)
    np.testing.assert_allclose(jax.grad(scaled_mean_loss)(logits), expected, atol=1e-6)


@OPS
def test_tokens_with_zero_weight_do_not_contribute_even_if_their_states_are_nan(op):
    logits, targets, weights = make_inputs()
    nan_logits = jnp.where(weights[..., None] == 0, jnp.nan, logits)

    def loss_sum(z):
        return compute_loss(z, targets, weights, 0.1, op).loss_sum

    assert float(loss_sum(nan_logits)) == float(loss_sum(logits))
    gradient = jax.jit(jax.grad(loss_sum))(nan_logits)
    assert bool(jnp.all(jnp.where(weights[..., None] == 0, gradient == 0, jnp.isfinite(gradient))))


@OPS
def test_tokens_with_zero_weight_do_not_contribute_to_any_gradient_even_if_their_logits_overflow(op):
    states, embedding, bias = make_states((2, 3, 5))
    _, targets, weights = make_inputs()
    states, overflowing = (jnp.where(weights[..., None] == 0, state, states) for state in (0.0, 3e38))
    assert not bool(jnp.isfinite(overflowing @ embedding.T).all())
    expected = differentiate_loss(states, embedding, bias, targets, weights, 0.1, op)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(expected))
    actual = differentiate_loss(overflowing, embedding, bias, targets, weights, 0.1, op)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@OPS
def test_nan_states_of_tokens_with_nonzero_weight_give_a_nonfinite_loss(op):
    logits, targets, _ = make_inputs()
    logits = logits.at[0, 0, 0].set(jnp.nan)
    assert not np.isfinite(float(compute_loss(logits, targets, jnp.ones(targets.shape), op=op).loss_sum))


@OPS
def test_large_logits_give_a_finite_loss_and_gradient(op):
    logits, targets, weights = make_inputs()
    differentiate = jax.jit(jax.value_and_grad(lambda z: compute_loss(z, targets, weights, 0.1, op).loss_sum))
    loss, gradient = differentiate(logits * 1e6)
    assert np.isfinite(float(loss)) and bool(jnp.all(jnp.isfinite(gradient)))


@OPS
def test_correct_sum_is_the_weight_of_correctly_predicted_tokens(op):
    logits, targets, weights = make_inputs()
    correct_before = float(jnp.sum((jnp.argmax(logits, -1) == targets) * weights))
    logits_with_correct_first = logits.at[0, 0, 0, targets[0, 0, 0]].set(99.0)
    loss = compute_loss(logits_with_correct_first, targets, weights.at[0, 0, 0].set(2.0), op=op)
    first_before = float((jnp.argmax(logits[0, 0, 0]) == targets[0, 0, 0]) * weights[0, 0, 0])
    assert float(loss.correct_sum) == correct_before - first_before + 2
    assert float(loss.weight_sum) == float(weights.sum() - weights[0, 0, 0]) + 2


def test_sums_of_microbatches_equal_the_sum_of_the_batch():
    logits, targets, weights = make_inputs(shape=(4, 3, 5))
    expected = compute_loss(logits, targets, weights, 0.1)
    microbatches = [compute_loss(logits[i::2], targets[i::2], weights[i::2], 0.1) for i in range(2)]
    np.testing.assert_allclose(jax.tree.map(jnp.add, *microbatches), expected, rtol=1e-6)


def test_the_loss_of_bfloat16_states_is_summed_in_float32_and_each_gradient_has_the_dtype_of_its_argument():
    _, targets, weights = make_inputs(shape=(64, 16))
    states, embedding, bias = make_states((64, 16))
    (mean_loss, _), gradients = differentiate_loss(states.astype(jnp.bfloat16), embedding, bias, targets, weights, 0.1)
    assert mean_loss.dtype == jnp.float32
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    rounded = (array.astype(jnp.bfloat16).astype(jnp.float32) for array in (states, embedding))
    np.testing.assert_allclose(mean_loss, compute_mean_loss(*rounded, bias, targets, weights, 0.1)[0], rtol=1e-6)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_an_array_as_large_as_all_logits_is_never_allocated(with_gradients):
    tokens, vocabulary_size = 8192, 1000
    _, targets, weights = make_inputs(shape=(tokens,), vocabulary_size=8)
    states, output_layer = jnp.ones((tokens, 8)), (jnp.ones((vocabulary_size, 8)), jnp.ones(vocabulary_size))
    lowered = jax.jit(differentiate_loss if with_gradients else compute_mean_loss).lower(
        states, *output_layer, targets, weights
    )
    stats = compute_stats(lowered, lowered.compile())
    assert stats["memory"]["temporaries"] < 0.3 * 4 * tokens * vocabulary_size


@OPS
def test_invalid_smoothing_and_incompatible_shapes_are_rejected(op):
    logits, targets, weights = make_inputs()
    states, embedding, bias = make_states(targets.shape)
    for smoothing in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), got {smoothing}"):
            compute_loss(logits, targets, weights, smoothing, op)
    with unchecked_shapes():
        with pytest.raises(ValueError, match=r"states of shape \(2, 2, 5, 31\) require targets and weights of shape"):
            compute_loss(logits[:, 1:], targets, weights, op=op)
        with pytest.raises(ValueError, match=r"weights of shape \(2, 3, 5\), got \(2, 3, 5\) and \(2, 3\)"):
            op(states, embedding, bias, targets, weights[..., 0])
        for output_layer in ((embedding[:, 1:], bias), (embedding, bias[:1])):
            with pytest.raises(ValueError, match="states of width 8 require an embedding"):
                op(states, *output_layer, targets, weights)


@pytest.mark.parametrize(("shape", "shards"), [((700,), 1), ((2, 3), 1), ((8, 3, 50), 1), ((8, 3, 50), 4), ((4, 6), 2)])
@pytest.mark.parametrize(("smoothing", "chunk_size"), [pytest.param(0.0, 512, marks=pytest.mark.slow), (0.1, 7)])
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


@OPS
def test_the_loss_without_gradients_is_the_same(op):
    arguments = (*make_states((8, 30)), *make_inputs(shape=(8, 30))[1:])
    expected = differentiate_loss(*arguments, 0.1)[0]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), compute_mean_loss(*arguments, 0.1, op), expected
    )
