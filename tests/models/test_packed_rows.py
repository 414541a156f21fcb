"""Decoder scores on packed rows equal scores with one caption per row, also with dropout."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.models.decoder import Decoder
from caption_jax.objectives.forward_pass import CaptionRows
from input_pipeline.packing import pack_captions

BATCH, CAPTIONS, LENGTH, WIDTH, VOCABULARY = 4, 4, 25, 24, 30


def make_tokens(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = np.ones((BATCH, CAPTIONS, LENGTH + 1), np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        length = rng.integers(1, LENGTH - 1)
        caption[: length + 2] = [0, *rng.integers(4, VOCABULARY, length), 2]
    return tokens


@functools.cache
def compute_scores_and_gradient(rows: int):
    """Returns scores per caption, the token count and gradients. Captions are packed if `rows` is positive."""
    tokens, mask = make_tokens(), np.array([True, True, False, True])
    batch = {"tokens": tokens, "mask": mask, **(pack_captions(tokens, mask, rows) if rows else {})}
    memory = np.random.default_rng(2).normal(size=(BATCH, 6, WIDTH)).astype(np.float32)
    decoder = Decoder(VOCABULARY, 1, WIDTH, 3, 48, dropout=0.3, max_length=LENGTH)
    variables = random_variables(decoder, tokens[..., :-1], memory)

    def run(variables, batch):
        rows = CaptionRows.from_batch(batch)
        rngs = {"dropout": jax.random.key(1)}
        output = decoder.apply(variables, rows.inputs, memory, segments=rows.segments, train=True, rngs=rngs)
        scores = rows.segments.to_captions(output.logits * rows.weights[..., None])
        return (scores**2).sum(), (scores, rows.weights.sum())

    (_, scores_and_count), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(variables, batch)
    return *scores_and_count, gradient


@pytest.mark.parametrize("rows", [1, 2, BATCH])
def test_scores_and_gradients_equal_one_caption_per_row(rows):
    scores, count, gradient = compute_scores_and_gradient(rows)
    expected_scores, expected_count, expected_gradient = compute_scores_and_gradient(0)
    assert 0 < count == expected_count
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6, atol=1e-5)
    for array, expected_array in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=0, atol=1e-5 * np.abs(expected_array).max())
