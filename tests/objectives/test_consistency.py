"""Consistency under dropout: the formula, its gradient, several devices, and two passes of a model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import log_softmax
from tiny_captioner import LENGTH, MODEL, VOCABULARY_SIZE

from caption_jax.errors import ConfigError
from caption_jax.objectives import consistency
from caption_jax.objectives.consistency import Consistency
from caption_jax.objectives.forward_pass import ForwardPass
from input_pipeline.special_tokens import BOS, EOS, PAD

TOKENS, WIDTH, WORDS = 8, 5, 9


def make_arrays() -> list[np.ndarray]:
    """Returns states of two passes, the output layer and weights, of which some are 0."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((TOKENS, 2, 2, WIDTH), (WORDS, WIDTH), (WORDS,))]
    return [*arrays, rng.integers(0, 2, (TOKENS, 2)).astype(float)]


def compute_reference(states, embedding, bias, weights) -> float:
    log_p, log_q = np.moveaxis(log_softmax(states @ embedding.T + bias, axis=-1), -2, 0)
    divergences = (np.exp(log_p) * (log_p - log_q)).sum(-1), (np.exp(log_q) * (log_q - log_p)).sum(-1)
    return float((np.mean(divergences, axis=0) * weights).sum())


def compute(*arrays, shards: int = 1):
    return consistency._compute_divergence(*(jnp.asarray(array, jnp.float32) for array in arrays), shards)


def test_the_loss_and_its_gradient_match_the_definition(monkeypatch):
    monkeypatch.setattr(consistency, "_CHUNK_SIZE", 3)
    arrays = make_arrays()
    assert float(compute(*arrays)) == pytest.approx(compute_reference(*arrays), rel=1e-5) and arrays[3].any()
    gradients = jax.grad(compute, (0, 1, 2))(*(array.astype(np.float32) for array in arrays))
    rng = np.random.default_rng(1)
    for index, gradient in enumerate(gradients):
        direction, values = rng.normal(size=gradient.shape), []
        for sign in (1, -1):
            shifted = make_arrays()
            shifted[index] = shifted[index] + sign * 1e-5 * direction
            values.append(compute_reference(*shifted))
        assert np.vdot(gradient, direction) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3)


@pytest.mark.usefixtures("eight_devices")
def test_eight_devices_compute_the_same_gradient_as_one(monkeypatch):
    monkeypatch.setattr(consistency, "_CHUNK_SIZE", 1)
    arrays = [array.astype(np.float32) for array in make_arrays()]
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    sharded, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    step = jax.value_and_grad(functools.partial(compute, shards=8), (0, 1, 2))
    actual = jax.jit(step, in_shardings=(sharded, everywhere, everywhere, sharded))(*arrays)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        actual,
        jax.value_and_grad(compute, (0, 1, 2))(*arrays),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_passes_of_a_model_differ_in_dropout_alone(dropout):
    model = MODEL.clone(decoder=MODEL.decoder.clone(dropout=dropout))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    tokens = np.full((2, 2, LENGTH + 1), PAD, np.int32)
    tokens[..., :3] = BOS, 4, EOS
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.ones(2, bool)}
    variables = model.init(jax.random.key(0), images, tokens[..., :-1], train=False)
    variables["params"]["decoder"]["embedding"] = rng.normal(size=(VOCABULARY_SIZE, MODEL.decoder.width))

    def compute_loss(bound):
        return Consistency()(bound, ForwardPass(bound, images, batch), batch, {}, jax.random.key(0)).losses["loss"]

    rngs = {"dropout": jax.random.key(1)}
    loss, _ = model.apply(variables, method=compute_loss, rngs=rngs, mutable=["batch_stats"])
    assert float(loss.count) == 2 * 2 * 2
    assert float(loss.mean()) == 0 if dropout == 0 else 0.01 < float(loss.mean()) < 10


def test_a_nonpositive_weight_is_rejected():
    with pytest.raises(ConfigError, match=r"Consistency.weight"):
        Consistency(weight=0.0)
