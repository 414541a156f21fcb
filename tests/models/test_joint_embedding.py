"""The joint embedding of images and texts: unit vectors, a bounded temperature, and no parameters if unused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.config import default_config
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.joint_embedding import JointEmbedding
from caption_jax.specs import ModelSpec, build_spec
from input_pipeline.special_tokens import PAD

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
TOKENS = jnp.array([[[0, 5, 6, 7]], [[0, 8, 3, 1]]])


def make_model(has_text_encoder: bool):
    config = default_config().model
    config.encoder.variant = "micro"
    config.decoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 24})
    config.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    text = roberta_settings(config.text_encoder, 12, 6, PAD) if has_text_encoder else None
    return build_model(build_spec(ModelSpec, config), vocabulary_size=12, max_length=6, text_encoder=text)


def test_the_temperature_is_clamped_and_can_recover():
    embedding = JointEmbedding(4, temperature=0.1, min_temperature=0.05)

    def scale(log_scale):
        return embedding.apply({"params": {"log_scale": log_scale}}, method="similarity_scale")

    assert float(scale(jnp.log(10.0))) == pytest.approx(10)
    assert float(scale(jnp.float32(5.0))) == pytest.approx(20)
    # Gradients that would increase the scale beyond its limit are 0.
    outward, inward = (jax.grad(lambda x, sign=sign: sign * scale(x))(jnp.float32(5.0)) for sign in (-1.0, 1.0))
    assert float(outward) == 0 and float(inward) == pytest.approx(20)
    with pytest.raises(ValueError, match=r"joint_embedding\.temperature is 0\.01"):
        JointEmbedding(4, temperature=0.01, min_temperature=0.05).init(jax.random.key(0), method="similarity_scale")


@pytest.mark.slow
def test_a_text_encoder_does_not_change_the_captioner():
    captioner, searchable = make_model(has_text_encoder=False), make_model(has_text_encoder=True)
    captioner_variables, variables = (random_variables(model, IMAGES, TOKENS) for model in (captioner, searchable))
    assert set(captioner_variables["params"]) == {"image_encoder", "decoder"}
    assert "pooled" not in captioner_variables["params"]["image_encoder"]
    assert set(variables["params"]) == {"image_encoder", "decoder", "text_encoder", "joint_embedding"}
    with pytest.raises(ValueError, match="without a joint embedding"):
        captioner.apply(captioner_variables, TOKENS[0], TOKENS[0] > 1, method="embed_texts")

    # With equal parameters, both models compute equal logits.
    shared = jax.tree.map(lambda a: a, variables)
    shared["params"]["decoder"] = captioner_variables["params"]["decoder"]
    for part in captioner_variables["params"]["image_encoder"]:
        shared["params"]["image_encoder"][part] = captioner_variables["params"]["image_encoder"][part]
    shared["batch_stats"] = captioner_variables["batch_stats"]
    logits = jax.jit(lambda v: captioner.apply(v, IMAGES, TOKENS))(captioner_variables)
    np.testing.assert_array_equal(jax.jit(lambda v: searchable.apply(v, IMAGES, TOKENS))(shared), logits)


def test_vectors_have_unit_length_and_ignore_pads():
    model = make_model(has_text_encoder=True)
    variables = random_variables(model, IMAGES, TOKENS)

    @jax.jit
    def run(texts):
        features = model.apply(variables, IMAGES, method="encode_images")
        images = model.apply(variables, features, method="embed_images")
        return images, model.apply(variables, texts, texts != 1, method="embed_texts")

    images, texts = run(TOKENS[:, 0])
    padded_texts = run(jnp.pad(TOKENS[:, 0], ((0, 0), (0, 2)), constant_values=1))[1]
    for vectors in (images, texts):
        assert vectors.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_allclose(padded_texts, texts, atol=1e-5)
