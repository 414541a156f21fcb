"""Batch norm: groups of images, running statistics and frozen norms."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from caption_jax.models.batch_norm import BatchNorm

IMAGES = jnp.asarray(np.random.RandomState(0).randn(8, 3, 2, 5) * [1, 2, 3, 4, 5] + [5, 4, 3, 2, 1], jnp.float32)


def make_variables(images=IMAGES):
    channels = images.shape[-1]
    rng = np.random.RandomState(1)
    params = {"scale": rng.randn(channels), "bias": rng.randn(channels)}
    stats = {"mean": rng.randn(channels), "var": rng.uniform(0.5, 2, channels)}
    return jax.tree.map(jnp.float32, {"params": params, "batch_stats": stats})


def normalise(images, mean, var, params, epsilon=1e-3):
    return (images - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


def apply_in_training(norm, images=IMAGES):
    return jax.jit(lambda v, x: norm.apply(v, x, train=True, mutable=["batch_stats"]))(make_variables(images), images)


@pytest.mark.parametrize("size", [0, 2, 8])
def test_consecutive_images_share_statistics(size):
    out, new = apply_in_training(BatchNorm(group_size=size, momentum=0.9))
    groups = np.asarray(IMAGES).reshape(-1, size or 8, *IMAGES.shape[1:])
    means, variances = groups.mean((1, 2, 3)), groups.var((1, 2, 3))
    params, stats = make_variables()["params"], make_variables()["batch_stats"]
    expected = [normalise(*statistics, params) for statistics in zip(groups, means, variances, strict=True)]
    np.testing.assert_allclose(out, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * stats["mean"] + 0.1 * means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 * stats["var"] + 0.1 * variances.mean(0), rtol=1e-5)


def test_groups_are_independent():
    other = IMAGES.at[4:].multiply(3.0)
    norm = BatchNorm(group_size=4)
    np.testing.assert_array_equal(apply_in_training(norm)[0][:4], apply_in_training(norm, other)[0][:4])
    assert not np.allclose(apply_in_training(BatchNorm())[0][:4], apply_in_training(BatchNorm(), other)[0][:4])


def test_evaluation_uses_stored_statistics():
    out = BatchNorm().apply(make_variables(), IMAGES, train=False)
    stats = make_variables()["batch_stats"]
    expected = normalise(IMAGES, stats["mean"], stats["var"], make_variables()["params"])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_norm_uses_stored_statistics_in_training():
    class TwoNorms(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            norms = BatchNorm(frozen=True, name="first"), BatchNorm(name="second")
            return [norm(x, train=train) for norm in norms]

    variables = {kind: {"first": tree, "second": tree} for kind, tree in make_variables().items()}
    (first, second), new = TwoNorms().apply(variables, IMAGES, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(first, BatchNorm().apply(make_variables(), IMAGES, train=False))
    np.testing.assert_allclose(second, apply_in_training(BatchNorm())[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(new["batch_stats"]["first"]["mean"], make_variables()["batch_stats"]["mean"])
    assert not np.allclose(new["batch_stats"]["second"]["mean"], make_variables()["batch_stats"]["mean"])


def test_variance_is_accurate_if_the_mean_is_far_from_zero():
    far = IMAGES + 3000.0
    stats = {"mean": jnp.full(5, 3001.0), "var": jnp.ones(5)}
    all_variables = {"params": make_variables()["params"], "batch_stats": stats}
    out, _ = BatchNorm().apply(all_variables, far, train=True, mutable=["batch_stats"])
    exact = np.asarray(far, np.float64)
    expected = normalise(exact, exact.mean((0, 1, 2)), exact.var((0, 1, 2)), make_variables()["params"])
    np.testing.assert_allclose(out, expected, rtol=2e-3, atol=2e-3)


def test_gradients_match_the_formula():
    weights = jnp.asarray(np.random.RandomState(2).randn(*IMAGES.shape), jnp.float32)

    def norm_loss(params, x):
        all_variables = {"params": params, "batch_stats": make_variables()["batch_stats"]}
        out, _ = BatchNorm(group_size=4).apply(all_variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(out * weights)

    def expected_loss(params, x):
        grouped = x.reshape(2, 4, *x.shape[1:])
        mean, var = grouped.mean((1, 2, 3), keepdims=True), grouped.var((1, 2, 3), keepdims=True)
        out = (grouped - mean) / jnp.sqrt(var + 1e-3) * params["scale"] + params["bias"]
        return jnp.sum(out.reshape(x.shape) * weights)

    actual = jax.jit(jax.grad(norm_loss, (0, 1)))(make_variables()["params"], IMAGES)
    expected = jax.jit(jax.grad(expected_loss, (0, 1)))(make_variables()["params"], IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_eight_devices_match_one_device(size):
    images = jnp.concatenate([IMAGES, 2 * IMAGES + 1])
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def step(x):
        all_variables = make_variables()

        def loss(params):
            out, new = BatchNorm(group_size=size).apply(
                {**all_variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(out)), (out, new)

        return jax.grad(loss, has_aux=True)(all_variables["params"])

    single = jax.jit(step)(images)
    sharded = jax.jit(step)(jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), single, sharded)


def test_groups_that_do_not_divide_the_batch_are_rejected():
    with pytest.raises(ValueError, match="norm_group_size 3 does not divide a batch of 8"):
        apply_in_training(BatchNorm(group_size=3))


def test_statistics_are_float32_with_bfloat16_inputs():
    out, new = apply_in_training(BatchNorm(dtype=jnp.bfloat16), IMAGES.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    exact, _ = apply_in_training(BatchNorm())
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=0.03, atol=0.03)
    assert new["batch_stats"]["mean"].dtype == jnp.float32


ACTIVATIONS = {"linear": lambda z: z, "swish": jax.nn.swish, "relu6": jax.nn.relu6}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_applied_to_the_normalised_values(activation, train):
    weights = jnp.asarray(np.random.RandomState(2).randn(*IMAGES.shape), jnp.float32)

    def loss(norm, outer_activation, params, x):
        all_variables = {"params": params, "batch_stats": make_variables()["batch_stats"]}
        out = norm.apply(all_variables, x, train=train, mutable=["batch_stats"])[0]
        return jnp.sum(outer_activation(out) * weights), outer_activation(out)

    def compute_output_and_gradients(norm, outer_activation):
        gradients, out = jax.jit(jax.grad(lambda *a: loss(norm, outer_activation, *a), (0, 1), has_aux=True))(
            make_variables()["params"], IMAGES
        )
        return out, gradients

    fused = compute_output_and_gradients(BatchNorm(group_size=4, activation=activation), lambda out: out)
    separate = compute_output_and_gradients(BatchNorm(group_size=4), ACTIVATIONS[activation])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), fused, separate)
