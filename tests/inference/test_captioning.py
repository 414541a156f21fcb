"""Evaluation and `Captioner` produce the same captions."""

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
TEXTS = [["a red box on the left", "on the right"], ["the left"]]


def small_description() -> RunDescription:
    """A model with context, whose text encoder has a larger vocabulary than its decoder."""
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
    sizes = roberta_settings(spec.model.text_encoder, tokenizer.size, LENGTH, PAD)
    backbone = {"padding": "symmetric", "norm_epsilon": 1e-5}
    settings = ModelSettings(vocabulary.size, LENGTH, backbone, sizes, joint_embedding=False)
    return RunDescription(spec, settings, Preprocessing(size=32), vocabulary)


@pytest.fixture(scope="module")
def run() -> tuple[RunDescription, Any, Mapping[str, Any]]:
    """A run description, its model, and random variables."""
    description = small_description()
    model, random = description.model(), np.random.default_rng(0)
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, LENGTH - 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return description, model, variables


@pytest.fixture(scope="module")
def batch(run) -> dict[str, np.ndarray]:
    """A batch as produced by the input pipeline: two images with context."""
    vocabulary = run[0].vocabulary
    context = np.full((len(TEXTS), MAX_TEXTS, LENGTH), PAD, np.int32)
    for row, texts in zip(context, TEXTS, strict=True):
        row[: len(texts)] = vocabulary.encode_batch(texts, LENGTH)
    images = [small_run.box_image("red"), small_run.box_image("blue", "right")]
    return {"image": np.stack([run[0].preprocessing.load(image) for image in images]), "context": context}


def test_captioner_matches_evaluation(run, batch):
    description, model, variables = run
    decode = dataclasses.replace(description.spec.decode, method="greedy")
    with small_run.quick_compilation():
        step = jax.jit(lambda variables, batch: caption_batch(model, variables, batch, description, decode)[1])
        expected = step(variables, batch)
        actual = Captioner(description, variables, decode, batch_size=2).caption(list(batch["image"]), TEXTS)
    assert [caption.text for caption in actual] == [description.vocabulary.decode(row) for row in expected.tokens]
    np.testing.assert_allclose([caption.log_prob for caption in actual], expected.log_prob, rtol=1e-5)


def test_context_is_converted_to_token_ids_of_the_text_encoder(run, batch):
    description, model, variables = run
    ids = description.vocabulary.to_full(batch["context"])
    assert not np.array_equal(ids, batch["context"])

    @jax.jit
    def encode(variables, batch, ids):
        images = batch["image"]
        features = [
            encode_batch(model, variables, batch, description),
            *(encode_for_decoding(model, variables, images, tokens, description) for tokens in (ids, batch["context"])),
        ]
        return [feature.memory for feature in features]

    with small_run.quick_compilation():
        from_batch, with_encoder_ids, with_decoder_ids = encode(variables, batch, ids)
    np.testing.assert_allclose(from_batch, with_encoder_ids, rtol=0, atol=1e-6)
    assert np.abs(from_batch - with_decoder_ids).max() > 1e-3
