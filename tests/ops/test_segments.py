"""Moving tokens between packed rows and captions, and attention in packed rows against the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops import caption_attention as attention
from caption_jax.ops.segments import Segments
from input_pipeline.packing import pack_captions

BATCH, CAPTIONS, LENGTH = 4, 3, 7
MASK = np.array([True, True, False, True])


def make_tokens() -> np.ndarray:
    random = np.random.default_rng(0)
    tokens = np.ones((BATCH, CAPTIONS, LENGTH + 1), np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        words = random.integers(1, LENGTH - 1)
        caption[: words + 2] = [0, *random.integers(4, 30, words), 2]
    return tokens


def segments_of(rows: int) -> Segments:
    packed = pack_captions(make_tokens(), MASK, rows)
    ids, positions = jnp.asarray(packed["segment_ids"]), jnp.asarray(packed["positions"])
    return Segments.packed(ids, positions, BATCH * CAPTIONS // rows, LENGTH)


def real() -> np.ndarray:
    return ((make_tokens()[..., 1:] != 1) & MASK[:, None, None]).reshape(-1, LENGTH)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_tokens_return_to_their_captions_and_pads_are_zero(rows):
    x = np.random.default_rng(1).normal(size=(BATCH * CAPTIONS, LENGTH, 2, 5)).astype(np.float32)
    segments, expected = segments_of(rows), np.where(real()[..., None, None], x, 0)
    packed = segments.to_rows(jnp.asarray(x))
    assert packed.shape == (*segments.segment_ids.shape, 2, 5)
    np.testing.assert_array_equal(segments.to_captions(packed), expected)
    back = jax.grad(lambda x: (segments.to_rows(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(back, 2 * expected, rtol=1e-6)
    back = jax.grad(lambda y: (segments.to_captions(y) ** 2).sum())(packed)
    np.testing.assert_allclose(back, 2 * packed, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_token_ids_do_not_depend_on_packing(rows):
    segments = segments_of(rows)
    unpacked = Segments.one_per_row((BATCH, CAPTIONS, LENGTH)).token_ids
    is_token = np.asarray(segments.segment_ids) > 0
    np.testing.assert_array_equal(np.asarray(segments.token_ids)[is_token], unpacked.reshape(-1, LENGTH)[real()])
    np.testing.assert_array_equal(
        np.asarray(segments.image_ids(BATCH))[is_token], np.repeat(np.arange(BATCH), real().reshape(BATCH, -1).sum(1))
    )


def close(ours, reference):
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, 4])  # 0: not packed
def test_attention_equals_the_reference(rows):
    random = np.random.default_rng(2)
    segments = segments_of(rows) if rows else Segments.one_per_row((BATCH, CAPTIONS, LENGTH))
    tokens = (*segments.rows, segments.segment_ids.shape[-1])
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    qkv, queries, weights = draw(*tokens, 3, 2, 4), draw(*tokens, 2, 4), draw(*tokens, 8)
    keys, values = draw(BATCH, 2, 4, 6), draw(BATCH, 2, 6, 4)
    mask = jnp.asarray(random.random((BATCH, 6)) < 0.7)
    counts = jnp.broadcast_to(segments.segment_ids > 0, tokens)[..., None]

    def outcome(within_captions, to_memory):
        def loss(qkv, queries, keys, values):
            self_attended = within_captions(qkv, segments)
            memory_attended, attention = to_memory(queries, keys, values, mask, segments)
            attention = jnp.where(counts, jnp.swapaxes(attention, -3, -2).reshape(*tokens, -1), 0)
            return jnp.where(counts, weights * (self_attended + 2 * memory_attended), 0).sum(), (
                self_attended * counts,
                memory_attended * counts,
                attention,
            )

        return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(qkv, queries, keys, values)

    ours = outcome(attention.caption_attention, attention.memory_attention)
    reference = outcome(attention.caption_attention_reference, attention.memory_attention_reference)
    jax.tree.map(close, ours, reference)
