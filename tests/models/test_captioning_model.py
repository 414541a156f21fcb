"""The captioning model as built from a config: encoder, decoder and cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.config import default_config
from caption_jax.models.build import build_model
from caption_jax.specs import ModelSpec, build_spec

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
TOKENS = jnp.array([[[0, 5, 6, 7], [0, 4, 4, 9]], [[0, 8, 3, 1], [0, 9, 9, 9]]])


def make_model(dtype=jnp.float32, **settings):
    config = default_config().model
    config.encoder.variant = "micro"
    config.decoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 24})
    config.update(settings)
    model = build_model(build_spec(ModelSpec, config), vocabulary_size=12, max_length=6, dtype=dtype)
    return model, random_variables(model, IMAGES, TOKENS, scale=0.3)


@pytest.fixture(scope="module")
def model_and_variables():
    return make_model()


@pytest.mark.parametrize(("image_memory", "memory_length"), [("grid", 16), ("vector", 1), ("both", 17)])
def test_the_decoder_attends_to_the_configured_memory(image_memory, memory_length):
    model, variables = make_model(image_memory=image_memory)

    @jax.jit
    def run(images, tokens):
        features = model.apply(variables, images, method="encode_images")
        return model.apply(variables, tokens, features, return_attention=True, method="decode")

    output = run(IMAGES, TOKENS)
    assert output.attention.shape == (1, 2, 2, 2, 4, memory_length)
    assert output.logits.shape == (2, 2, 4, 12)


def test_logits_do_not_depend_on_other_captions_of_the_image(model_and_variables):
    model, variables = model_and_variables
    compute_logits = jax.jit(lambda images, tokens: model.apply(variables, images, tokens))
    logits = compute_logits(IMAGES, TOKENS)
    for caption in range(2):
        caption_logits = compute_logits(IMAGES, TOKENS[:, caption, None])[:, 0]
        np.testing.assert_allclose(caption_logits, logits[:, caption], atol=1e-5)


def test_logits_do_not_depend_on_other_images(model_and_variables):
    model, variables = model_and_variables
    compute_logits = jax.jit(lambda images, tokens: model.apply(variables, images, tokens))
    logits = compute_logits(IMAGES, TOKENS)
    np.testing.assert_allclose(compute_logits(IMAGES[1:], TOKENS[1:])[0], logits[1], atol=1e-5)


def test_cached_decoding_matches_the_full_pass(model_and_variables):
    model, variables = model_and_variables
    full = jax.jit(lambda images, tokens: model.apply(variables, images, tokens))(IMAGES, TOKENS)
    features = jax.jit(lambda images: model.apply(variables, images, method="encode_images"))(IMAGES)
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache, method="decode"))
    for memory in (features, features.memory):
        cache = model.apply(variables, memory, rows=2, length=4, method="start_cache")
        for t in range(4):
            output = step(TOKENS[..., t : t + 1], cache)
            cache = output.cache
            np.testing.assert_allclose(output.logits[:, :, 0], full[:, :, t], atol=1e-5)


def test_training_updates_all_batch_statistics(model_and_variables):
    model, variables = model_and_variables
    key = jax.random.key(1)
    rngs = {"dropout": key, "drop_path": key}
    train = jax.jit(lambda v: model.apply(v, IMAGES, TOKENS, train=True, rngs=rngs, mutable=["batch_stats"]))
    logits, updated = train(variables)
    assert logits.shape == (2, 2, 4, 12) and bool(jnp.isfinite(logits).all())
    has_changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(has_changed))


@pytest.mark.slow
def test_parameters_and_logits_are_float32_with_bfloat16():
    model, variables = make_model(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.jit(lambda v: model.apply(v, IMAGES, TOKENS))(variables)
    assert logits.dtype == jnp.float32
    expected = jax.jit(lambda v: make_model()[0].apply(v, IMAGES, TOKENS))(variables)
    np.testing.assert_allclose(logits, expected, atol=0.3)


def test_decoding_without_memory_is_rejected(model_and_variables):
    model, variables = model_and_variables
    with pytest.raises(ValueError, match="needs a memory"):
        model.apply(variables, TOKENS, method="decode")
