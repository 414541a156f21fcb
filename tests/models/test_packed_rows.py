"""Decoder logits on packed rows equal those with one caption per row, even with dropout."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.models.decoder import Decoder
from caption_jax.objectives.forward_pass import CaptionRows
from input_pipeline.block_layout import BlockLayout
from input_pipeline.packing import pack_blocks, pack_captions

BATCH, CAPTIONS, LENGTH, WIDTH, VOCABULARY_SIZE = 4, 4, 25, 24, 30


def make_tokens(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = np.ones((BATCH, CAPTIONS, LENGTH + 1), np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        length = rng.integers(1, LENGTH - 1)
        caption[: length + 2] = [0, *rng.integers(4, VOCABULARY_SIZE, length), 2]
    return tokens


@functools.cache
def compute_logits_and_gradients(rows: int, block_length: int = 0):
    """Returns masked logits per caption, the token count and gradients. Captions are packed if `rows` is positive."""
    tokens, mask = make_tokens(), np.array([True, True, False, True])
    batch = {"tokens": tokens, "mask": mask}
    if block_length:
        batch |= pack_blocks(tokens, mask, rows, BlockLayout(block_length, extra=8))
    elif rows:
        batch |= pack_captions(tokens, mask, rows)
    memory = np.random.default_rng(2).normal(size=(BATCH, 6, WIDTH)).astype(np.float32)
    memory_mask = np.arange(6) < np.array([[6], [3], [4], [2]])
    decoder = Decoder(VOCABULARY_SIZE, 1, WIDTH, 3, 48, dropout=0.3, max_length=LENGTH)
    variables = random_variables(decoder, tokens[..., :-1], memory)

    def compute_loss(variables, batch):
        caption_rows = CaptionRows.from_batch(batch)
        rngs = {"dropout": jax.random.key(1)}
        output = decoder.apply(
            variables,
            caption_rows.inputs,
            memory,
            segments=caption_rows.segments,
            memory_mask=memory_mask,
            train=True,
            rngs=rngs,
        )
        logits = caption_rows.segments.to_captions(output.logits * caption_rows.weights[..., None])
        return (logits**2).sum(), (logits, caption_rows.weights.sum())

    (_, logits_and_count), gradients = jax.jit(jax.value_and_grad(compute_loss, has_aux=True))(variables, batch)
    return *logits_and_count, gradients


SLOW_ROWS = [pytest.param(*rows, marks=pytest.mark.slow) for rows in ((1, 0), (BATCH, 0), (BATCH, 25))]


@pytest.mark.parametrize(("rows", "block_length"), [(2, 0), (1, 128), (2, 40), *SLOW_ROWS])
def test_logits_and_gradients_equal_those_with_one_caption_per_row(rows, block_length):
    logits, count, gradients = compute_logits_and_gradients(rows, block_length)
    expected_logits, expected_count, expected_gradients = compute_logits_and_gradients(0)
    assert 0 < count == expected_count
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-6, atol=1e-5)
    for array, expected_array in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=0, atol=1e-5 * np.abs(expected_array).max())
