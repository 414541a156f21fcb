"""Evaluation and `Captioner` generate the same captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from caption_jax.inference.captioner import Captioner
from caption_jax.inference.captioning import caption_batch, encode_batch, encode_for_decoding
from caption_jax.models.build import roberta_settings
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.specs import RunSpec
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

LENGTH, MAX_TEXTS = 10, 2
CONTEXTS = [["a red box on the left", "on the right"], ["the left"]]


def make_description() -> RunDescription:
    """Returns the description of a model with context, whose vocabulary is smaller than that of its text encoder."""
    config = small_run.get_config()
    config.data.context = "an index"
    config.dtype = "float32"
    config.model.context.max_texts = MAX_TEXTS
    config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    spec = RunSpec.from_config(config)
    tokenizer = Tokenizer.train(
        ["a red box on the left", "a green box on the right", "green trees, red trees"] * 2, 300
    )
    token_ids = {token for ids in tokenizer.encode_batch(["a red box on the left, the right"]) for token in ids}
    vocabulary = Vocabulary(tokenizer, token_ids)
    assert vocabulary.size < tokenizer.size
    text_encoder = roberta_settings(spec.model.text_encoder, tokenizer.size, LENGTH, PAD)
    backbone = {"padding": "symmetric", "norm_epsilon": 1e-5}
    settings = ModelSettings(vocabulary.size, LENGTH, backbone, text_encoder, joint_embedding=False)
    return RunDescription(spec, settings, Preprocessing(size=32), vocabulary)


@pytest.fixture(scope="module")
def run() -> tuple[RunDescription, Any, Mapping[str, Any]]:
    """A run description, its model, and randomly initialised variables."""
    description = make_description()
    model, rng = description.model(), np.random.default_rng(0)
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, LENGTH - 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return description, model, variables


@pytest.fixture(scope="module")
def batch(run) -> dict[str, np.ndarray]:
    """Two images and their context, in the batch format of the input pipeline."""
    description, _, _ = run
    context = np.full((len(CONTEXTS), MAX_TEXTS, LENGTH), PAD, np.int32)
    for row, texts in zip(context, CONTEXTS, strict=True):
        row[: len(texts)] = description.vocabulary.encode_batch(texts, LENGTH)
    images = [small_run.box_image("red"), small_run.box_image("blue", "right")]
    return {"image": np.stack([description.preprocessing.load(image) for image in images]), "context": context}


def test_captioner_generates_the_same_captions_as_evaluation(run, batch):
    description, model, variables = run
    decode = dataclasses.replace(description.spec.decode, method="greedy")
    step = jax.jit(lambda variables, batch: caption_batch(model, variables, batch, description, decode)[1])
    expected = step(variables, batch)
    actual = Captioner(description, variables, decode, batch_size=2).caption(list(batch["image"]), CONTEXTS)
    assert [caption.text for caption in actual] == [description.vocabulary.decode(ids) for ids in expected.tokens]
    np.testing.assert_allclose([caption.log_prob for caption in actual], expected.log_prob, rtol=1e-5)


def test_context_is_converted_to_token_ids_of_the_text_encoder(run, batch):
    description, model, variables = run
    decoder_ids = batch["context"]
    encoder_ids = description.vocabulary.to_full(decoder_ids)
    assert not np.array_equal(encoder_ids, decoder_ids)

    @jax.jit
    def encode(variables, batch, encoder_ids):
        features = [
            encode_batch(model, variables, batch, description),
            *(
                encode_for_decoding(model, variables, batch["image"], ids, description)
                for ids in (encoder_ids, batch["context"])
            ),
        ]
        return [feature.memory for feature in features]

    memory, memory_of_encoder_ids, memory_of_decoder_ids = encode(variables, batch, encoder_ids)
    np.testing.assert_allclose(memory, memory_of_encoder_ids, rtol=0, atol=1e-6)
    assert np.abs(memory - memory_of_decoder_ids).max() > 1e-3
