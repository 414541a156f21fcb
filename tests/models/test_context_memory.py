"""Context texts: the decoder attends to the texts of each image and to nothing else."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables
from small_run import quick_compilation

from caption_jax.config import default_config
from caption_jax.decoding import decode
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.specs import DecodeSpec, ModelSpec, build_spec
from input_pipeline.special_tokens import PAD

VOCABULARY, LENGTH, SLOTS = 12, 6, 3
IMAGES = jnp.zeros((2, 32, 32, 3))  # only their shape is used, because the tests start from features
FEATURES = ImageFeatures(jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32), None)
TOKENS = jnp.array([[[0, 5, 6, 7], [0, 4, 4, 9]], [[0, 8, 3, 1], [0, 9, 9, 9]]])
# The first image has three texts of different lengths, the second image has one.
CONTEXT = jnp.array([[[0, 5, 6, 2], [0, 7, 2, 1], [0, 9, 10, 2]], [[0, 8, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]])
NO_CONTEXT = jnp.full_like(CONTEXT, PAD)


@functools.cache
def built(form: str = "vector", joint_embedding: bool = False):
    config = default_config().model
    config.encoder.variant = "micro"
    config.decoder.update({"layers": 2, "width": 16, "heads": 2, "feed_forward": 24})
    config.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8, "dropout": 0.0})
    config.context.update({"max_texts": SLOTS, "form": form})
    text = roberta_settings(config.text_encoder, VOCABULARY, LENGTH, PAD)
    model = build_model(
        build_spec(ModelSpec, config), VOCABULARY, LENGTH, text_encoder=text, joint_embedding=joint_embedding
    )
    return model, random_variables(model, IMAGES, TOKENS, scale=0.4)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def logits_of(model, context):
    """For `model.apply(..., method=logits_of)`. `context` is None for a model without context."""
    features = FEATURES if context is None else model.add_context(FEATURES, context, context != PAD)
    return model.decode(TOKENS, features).logits


@functools.cache
def runner(form: str = "vector"):
    model, variables = built(form)
    return jax.jit(lambda context: model.apply(variables, context, method=logits_of))


@pytest.mark.parametrize("form", ["vector", "tokens"])
def test_empty_context_equals_no_context(form):
    run = runner(form)
    empty = np.asarray(run(NO_CONTEXT))
    np.testing.assert_allclose(
        empty, run(None), rtol=0, atol=2e-6
    )  # sums over more memory positions, whose weights are 0
    second = np.asarray(run(CONTEXT.at[1].set(PAD)))
    np.testing.assert_array_equal(second[1], empty[1])
    assert np.abs(second[0] - empty[0]).max() > 1e-3


@pytest.mark.parametrize("form", ["vector", "tokens"])
def test_each_image_attends_only_to_its_own_texts(form):
    run = runner(form)
    logits = np.asarray(run(CONTEXT))
    for text in range(SLOTS):
        changed = np.asarray(run(CONTEXT.at[0, text, 1].set(4)))
        assert np.abs(changed[0] - logits[0]).max() > 1e-4, text
        np.testing.assert_array_equal(changed[1], logits[1])
    swapped = np.asarray(run(CONTEXT.at[0].set(CONTEXT[0][jnp.array([1, 0, 2])])))
    assert np.abs(swapped[0] - logits[0]).max() > 1e-4, "the order of the texts matters"


@pytest.mark.parametrize(("form", "positions"), [("vector", SLOTS), ("tokens", SLOTS * 4)])
def test_texts_are_memory_positions_after_those_of_the_image(form, positions):
    model, variables = built(form)

    @jax.jit
    def run(context):
        more = model.apply(variables, FEATURES, context, context != PAD, method="add_context")
        return more, model.apply(variables, TOKENS, more, return_attention=True, method="decode").attention

    more, attention = run(CONTEXT)
    image_memory_length = more.image_memory_length
    np.testing.assert_array_equal(more.memory[:, :image_memory_length], FEATURES.memory)
    assert more.memory.shape[1] == attention.shape[-1] == image_memory_length + positions
    real = CONTEXT != PAD
    counts = real.any(-1) if form == "vector" else real.reshape(2, -1)
    np.testing.assert_array_equal(
        more.memory_mask, np.concatenate([np.ones((2, image_memory_length), bool), counts], axis=1)
    )
    hidden = np.asarray(attention).max((0, 2, 3, 4))[~np.asarray(more.memory_mask)]
    assert hidden.size and not hidden.any()
    assert np.asarray(attention)[..., image_memory_length:].sum(-1).max((0, 2, 3, 4)).min() > 1e-3


def test_the_caption_loss_trains_the_text_encoder():
    model, variables = built("tokens")

    @jax.jit
    def gradient(params, context):
        def loss(params):
            logits = model.apply({**variables, "params": params}, context, method=logits_of)
            return -jax.nn.log_softmax(logits)[..., 5].mean()

        return jax.grad(loss)(params)

    gradients = gradient(variables["params"], CONTEXT)
    for part in (gradients["text_encoder"]["roberta"]["embeddings"], gradients["context"]):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) > 1e-5
    rows = np.abs(gradients["text_encoder"]["roberta"]["embeddings"]["word_embeddings"]["embedding"]).max(-1)
    assert set(np.flatnonzero(rows)) == set(np.unique(CONTEXT)) - {PAD}
    nothing = gradient(variables["params"], NO_CONTEXT)
    assert not any(
        np.asarray(leaf).any() for part in ("text_encoder", "context") for leaf in jax.tree.leaves(nothing[part])
    )


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_every_decoding_method_reads_the_context_from_the_cache(method):
    """Log probabilities of decoding equal those of a teacher-forced pass with the same context."""
    model, variables = built()
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


def test_context_has_a_text_encoder_but_no_joint_embedding():
    assert set(built()[1]["params"]) == {"image_encoder", "decoder", "text_encoder", "context"}
    assert set(built(joint_embedding=True)[1]["params"]) == {*built()[1]["params"], "joint_embedding"}


def test_texts_that_do_not_fit_are_rejected():
    model, variables = built()
    with pytest.raises(ValueError, match=r"4 context texts per image, but config\.model\.context\.max_texts=3"):
        model.apply(variables, jnp.zeros((2, 4, 4), jnp.int32), method=logits_of)
    with pytest.raises(ValueError, match=r"config\.model\.context\.form is 'words'"):
        built("words")
    plain = model.clone(context=None)
    with pytest.raises(ValueError, match=r"without context \(config\.model\.context\.max_texts=0\)"):
        plain.apply(variables, CONTEXT, method=logits_of)
