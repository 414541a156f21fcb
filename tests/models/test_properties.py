"""Properties of the model that a previous codebase violated."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.config import default_config
from caption_jax.models.build import build_model
from caption_jax.models.roberta import RobertaSettings
from caption_jax.models.text_encoder import TextEncoder
from caption_jax.specs import ModelSpec, build_spec

VOCABULARY_SIZE, LENGTH, PAD = 23, 8, 1


class Captioner:
    """A small captioner with random weights, images and captions, and compiled forward passes."""

    def __init__(self, norm: str):
        config = default_config().model
        config.encoder.variant = "micro"
        config.decoder.update({"layers": 2, "width": 16, "heads": 2, "feed_forward": 24, "norm": norm})
        self.model = build_model(build_spec(ModelSpec, config), VOCABULARY_SIZE, max_length=3 * LENGTH)
        rng = np.random.default_rng(0)
        self.images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
        self.tokens = jnp.asarray(rng.integers(4, VOCABULARY_SIZE, size=(2, 3, LENGTH))).at[..., 0].set(0)
        self.variables = random_variables(self.model, self.images, self.tokens[..., :-1], scale=0.3)
        # Variables are arguments, so both kinds of norm share compiled programs.
        self.logits = functools.partial(jax.jit(self.model.apply), self.variables)
        self.features = functools.partial(
            jax.jit(functools.partial(self.model.apply, method="encode_images")), self.variables
        )
        self.training_logits = functools.partial(jax.jit(self._train), self.variables)

    def _train(self, variables, images, tokens):
        key = jax.random.key(5)
        rngs = {"dropout": key, "drop_path": key}
        return self.model.apply(variables, images, tokens, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    def compute_loss(self, states, targets, smoothing=0.0, output_layer=None):
        """Returns the mean loss of states before the output layer, that of the model by default."""
        if output_layer is None:
            output_layer = self.model.apply(self.variables, method="output_layer")
        sums = self.model.ops.vocabulary_cross_entropy(states, *output_layer, targets, targets != PAD, smoothing)
        return sums.loss_sum / sums.weight_sum


@pytest.fixture(scope="module", params=["pre", pytest.param("post", marks=pytest.mark.slow)])
def captioner(request) -> Captioner:
    return Captioner(request.param)


def test_swapping_the_images_changes_the_logits(captioner):
    logits = captioner.logits(captioner.images, captioner.tokens[..., :-1])
    swapped = captioner.logits(captioner.images[::-1], captioner.tokens[..., :-1])
    change = np.abs(np.asarray(logits - swapped)).max(-1)
    assert change.min() > 1e-3, "logits must change at every step of every caption"


def test_the_loss_has_a_gradient_with_respect_to_the_image(captioner):
    inputs, targets = captioner.tokens[..., :-1], captioner.tokens[..., 1:]

    @jax.jit
    def compute_gradients(variables, images):
        """Returns the gradients with respect to the memory and to the pixels."""

        output_layer = captioner.model.apply(variables, method="output_layer")

        def loss(memory):
            states = captioner.model.apply(variables, inputs, memory, method="decode").states
            return captioner.compute_loss(states, targets, output_layer=output_layer)

        def encode(images):
            return captioner.model.apply(variables, images, method="encode_images").memory

        memory, apply_vjp = jax.vjp(encode, images)
        gradient = jax.grad(loss)(memory)
        return gradient, *apply_vjp(gradient)

    memory_gradient, pixel_gradient = compute_gradients(captioner.variables, captioner.images)
    assert np.abs(memory_gradient).max(-1).min() > 0, "the loss must depend on every memory position"
    assert np.abs(pixel_gradient).max((1, 2, 3)).min() > 1e-6, "the loss must depend on every image"


@pytest.mark.parametrize("mode", ["logits", "training_logits"])
def test_logits_do_not_depend_on_later_tokens(captioner, mode):
    compute_logits = getattr(captioner, mode)
    inputs = captioner.tokens[..., :-1]
    logits = np.asarray(compute_logits(captioner.images, inputs))
    for t in range(LENGTH - 2):
        changed_inputs = inputs.at[..., t + 1].set((inputs[..., t + 1] + 5) % VOCABULARY_SIZE)
        changed_logits = np.asarray(compute_logits(captioner.images, changed_inputs))
        np.testing.assert_array_equal(changed_logits[..., : t + 1, :], logits[..., : t + 1, :])
        assert np.abs(changed_logits[..., t + 1 :, :] - logits[..., t + 1 :, :]).max(-1).min() > 1e-6


def test_logits_do_not_depend_on_their_target_even_with_a_text_encoder(captioner):
    """The model has a text encoder that encodes the same captions."""
    roberta = RobertaSettings(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
    )
    model = captioner.model.clone(text_encoder=TextEncoder(roberta, width=16))

    def encode_and_decode(model, images, tokens):
        flat = tokens.reshape(-1, LENGTH)
        return model.encode_texts(flat, flat != PAD).vector, model(images, tokens[..., :-1])

    variables = random_variables(model, captioner.images, captioner.tokens, method=encode_and_decode)
    run = functools.partial(
        jax.jit(functools.partial(model.apply, method=encode_and_decode)), variables, captioner.images
    )
    text, logits = map(np.asarray, run(captioner.tokens))
    for t in range(1, LENGTH):
        target_changed = captioner.tokens.at[..., t].set((captioner.tokens[..., t] + 5) % VOCABULARY_SIZE)
        other_text, other_logits = map(np.asarray, run(target_changed))
        np.testing.assert_array_equal(other_logits[..., :t, :], logits[..., :t, :])  # step t - 1 predicts token t
        assert np.abs(other_text - text).max(-1).min() > 0, "the text encoder must depend on the token"


def test_a_model_without_texts_has_no_text_encoder(captioner):
    assert set(captioner.variables["params"]) == {"image_encoder", "decoder"}
    with pytest.raises(ValueError, match="without a text encoder"):
        captioner.model.apply(
            captioner.variables, captioner.tokens[0], captioner.tokens[0] != PAD, method="encode_texts"
        )


def test_padding_has_no_effect(captioner):
    tokens = captioner.tokens.at[:, 1, 5:].set(PAD)  # captions of different lengths
    longer = jnp.pad(tokens, ((0, 0), (0, 0), (0, 9)), constant_values=PAD)
    decode = jax.jit(functools.partial(captioner.model.apply, method="decode"))
    memory = captioner.features(captioner.images).memory
    expected = decode(captioner.variables, tokens[..., :-1], memory)
    padded = decode(captioner.variables, longer[..., :-1], memory)
    is_token = np.asarray(tokens[..., 1:] != PAD)
    np.testing.assert_allclose(padded.logits[..., : LENGTH - 1, :][is_token], expected.logits[is_token], atol=1e-5)
    for smoothing in (0.0, 0.1):
        loss = captioner.compute_loss(expected.states, tokens[..., 1:], smoothing)
        assert captioner.compute_loss(padded.states, longer[..., 1:], smoothing) == pytest.approx(float(loss), abs=1e-5)


def test_the_loss_is_the_log_of_the_vocabulary_size_for_uniform_logits_and_small_for_peaked_ones(captioner):
    logits = captioner.logits(captioner.images, captioner.tokens[..., :-1])
    targets, identity = captioner.tokens[..., 1:], (jnp.eye(VOCABULARY_SIZE), jnp.zeros(VOCABULARY_SIZE))
    uniform = captioner.compute_loss(jnp.full_like(logits, 3.0), targets, output_layer=identity)
    assert float(uniform) == pytest.approx(math.log(VOCABULARY_SIZE), abs=1e-5)
    peaked_logits = logits + 20 * jax.nn.one_hot(targets, VOCABULARY_SIZE)
    assert 0 <= float(captioner.compute_loss(peaked_logits, targets, output_layer=identity)) < 1e-3
