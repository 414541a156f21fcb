"""Context texts: the decoder attends only to the texts of the same image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.config import default_config
from caption_jax.decoding import decode
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.specs import DecodeSpec, ModelSpec, build_spec
from input_pipeline.special_tokens import PAD

VOCABULARY_SIZE, LENGTH, MAX_TEXTS = 12, 6, 3
IMAGES = jnp.zeros((2, 32, 32, 3))  # used for initialisation only
FEATURES = ImageFeatures(jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32), None)
TOKENS = jnp.array([[[0, 5, 6, 7], [0, 4, 4, 9]], [[0, 8, 3, 1], [0, 9, 9, 9]]])
# The first image has three texts of different lengths, and the second image has one.
CONTEXT = jnp.array([[[0, 5, 6, 2], [0, 7, 2, 1], [0, 9, 10, 2]], [[0, 8, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]])
NO_CONTEXT = jnp.full_like(CONTEXT, PAD)


@functools.cache
def make_model_and_variables(form: str = "vector", joint_embedding: bool = False):
    config = default_config().model
    config.encoder.variant = "micro"
    config.decoder.update({"layers": 2, "width": 16, "heads": 2, "feed_forward": 24})
    config.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8, "dropout": 0.0})
    config.context.update({"max_texts": MAX_TEXTS, "form": form})
    text = roberta_settings(config.text_encoder, VOCABULARY_SIZE, LENGTH, PAD)
    model = build_model(
        build_spec(ModelSpec, config), VOCABULARY_SIZE, LENGTH, text_encoder=text, joint_embedding=joint_embedding
    )
    return model, random_variables(model, IMAGES, TOKENS, scale=0.4)


def compute_logits(model, context):
    """Returns logits with the context texts, or without context if `context` is None. A `method` for `model.apply`."""
    features = FEATURES if context is None else model.add_context(FEATURES, context, context != PAD)
    return model.decode(TOKENS, features).logits


@functools.cache
def compile_logits(form: str = "vector"):
    model, variables = make_model_and_variables(form)
    return jax.jit(lambda context: model.apply(variables, context, method=compute_logits))


@pytest.mark.parametrize("form", ["vector", "tokens"])
def test_empty_context_equals_no_context(form):
    run = compile_logits(form)
    empty = np.asarray(run(NO_CONTEXT))
    # Attention sums over additional memory positions with weights of 0.
    np.testing.assert_allclose(empty, run(None), rtol=0, atol=2e-6)
    mixed = np.asarray(run(CONTEXT.at[1].set(PAD)))
    np.testing.assert_array_equal(mixed[1], empty[1])
    assert np.abs(mixed[0] - empty[0]).max() > 1e-3


@pytest.mark.parametrize("form", ["vector", "tokens"])
def test_logits_depend_only_on_the_texts_of_the_same_image(form):
    run = compile_logits(form)
    logits = np.asarray(run(CONTEXT))
    for text in range(MAX_TEXTS):
        changed = np.asarray(run(CONTEXT.at[0, text, 1].set(4)))
        assert np.abs(changed[0] - logits[0]).max() > 1e-4, text
        np.testing.assert_array_equal(changed[1], logits[1])
    swapped = np.asarray(run(CONTEXT.at[0].set(CONTEXT[0][jnp.array([1, 0, 2])])))
    assert np.abs(swapped[0] - logits[0]).max() > 1e-4, "the order of the texts matters"


@pytest.mark.parametrize(("form", "positions"), [("vector", MAX_TEXTS), ("tokens", MAX_TEXTS * 4)])
def test_text_positions_follow_the_image_positions_in_memory(form, positions):
    model, variables = make_model_and_variables(form)

    @jax.jit
    def run(context):
        extended = model.apply(variables, FEATURES, context, context != PAD, method="add_context")
        return extended, model.apply(variables, TOKENS, extended, return_attention=True, method="decode").attention

    extended, attention = run(CONTEXT)
    image_memory_length = extended.image_memory_length
    np.testing.assert_array_equal(extended.memory[:, :image_memory_length], FEATURES.memory)
    assert extended.memory.shape[1] == attention.shape[-1] == image_memory_length + positions
    is_token = CONTEXT != PAD
    is_valid = is_token.any(-1) if form == "vector" else is_token.reshape(2, -1)
    np.testing.assert_array_equal(
        extended.memory_mask, np.concatenate([np.ones((2, image_memory_length), bool), is_valid], axis=1)
    )
    masked_attention = np.asarray(attention).max((0, 2, 3, 4))[~np.asarray(extended.memory_mask)]
    assert masked_attention.size and not masked_attention.any()
    assert np.asarray(attention)[..., image_memory_length:].sum(-1).max((0, 2, 3, 4)).min() > 1e-3


def test_the_caption_loss_trains_the_text_encoder():
    model, variables = make_model_and_variables("tokens")

    @jax.jit
    def compute_gradients(params, context):
        def loss(params):
            logits = model.apply({**variables, "params": params}, context, method=compute_logits)
            return -jax.nn.log_softmax(logits)[..., 5].mean()

        return jax.grad(loss)(params)

    gradients = compute_gradients(variables["params"], CONTEXT)
    for part in (gradients["text_encoder"]["roberta"]["embeddings"], gradients["context"]):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) > 1e-5
    embedding_gradient = gradients["text_encoder"]["roberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert set(np.flatnonzero(np.abs(embedding_gradient).max(-1))) == set(np.unique(CONTEXT)) - {PAD}
    empty_gradients = compute_gradients(variables["params"], NO_CONTEXT)
    assert not any(
        np.asarray(leaf).any()
        for part in ("text_encoder", "context")
        for leaf in jax.tree.leaves(empty_gradients[part])
    )


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_every_decoding_method_reads_the_context_from_the_cache(method):
    """Decoding yields the same log-probabilities as a teacher-forced pass with the same context."""
    model, variables = make_model_and_variables()
    settings = {"method": method, "max_length": LENGTH, "num_beams": 2, "min_length": LENGTH}

    @jax.jit
    def run(context):
        features = model.apply(variables, FEATURES, context, context != PAD, method="add_context")
        decoded = decode(model, variables, features, DecodeSpec(**settings), key=jax.random.key(0))
        tokens = jnp.pad(decoded.all_tokens, ((0, 0), (0, 0), (1, 0)))[..., :-1]  # starting with <s>, which is 0
        teacher_forced = jax.nn.log_softmax(model.apply(variables, tokens, features, method="decode").logits)
        expected = jnp.take_along_axis(teacher_forced, decoded.all_tokens[..., None], axis=-1)[..., 0]
        return expected, decoded

    expected, decoded = run(CONTEXT)
    is_token = np.asarray(decoded.all_tokens) != PAD
    np.testing.assert_allclose(
        np.asarray(decoded.all_token_log_probs)[is_token], np.asarray(expected)[is_token], atol=1e-5
    )
    other = run(CONTEXT.at[0].set(CONTEXT[0, ::-1]))[1]
    np.testing.assert_array_equal(other.all_token_log_probs[1], decoded.all_token_log_probs[1])
    assert np.abs(np.asarray(other.all_scores[0] - decoded.all_scores[0])).max() > 1e-4


def test_a_model_with_context_has_a_text_encoder_without_joint_embedding():
    expected = {"image_encoder", "decoder", "text_encoder", "context"}
    assert set(make_model_and_variables()[1]["params"]) == expected
    assert set(make_model_and_variables(joint_embedding=True)[1]["params"]) == {*expected, "joint_embedding"}


def test_invalid_context_is_rejected():
    model, variables = make_model_and_variables()
    with pytest.raises(ValueError, match=r"4 context texts per image, but config\.model\.context\.max_texts=3"):
        model.apply(variables, jnp.zeros((2, 4, 4), jnp.int32), method=compute_logits)
    with pytest.raises(ValueError, match=r"config\.model\.context\.form is 'words'"):
        make_model_and_variables("words")
    without_context = model.clone(context=None)
    with pytest.raises(ValueError, match=r"without context \(config\.model\.context\.max_texts=0\)"):
        without_context.apply(variables, CONTEXT, method=compute_logits)
