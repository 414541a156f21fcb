"""Conversion between packed rows and captions, and attention in packed rows compared with the reference."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.ops import caption_attention as attention
from caption_jax.ops.segments import Segments
from input_pipeline.block_layout import BlockLayout
from input_pipeline.packing import pack_blocks, pack_captions

BATCH, CAPTIONS, LENGTH = 4, 3, 7
MASK = np.array([True, True, False, True])


def make_tokens() -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = np.ones((BATCH, CAPTIONS, LENGTH + 1), np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        length = rng.integers(1, LENGTH - 1)
        caption[: length + 2] = [0, *rng.integers(4, 30, length), 2]
    return tokens


def make_segments(rows: int, block_length: int | None = None) -> Segments:
    if block_length is None:
        packed = pack_captions(make_tokens(), MASK, rows)
    else:
        packed = pack_blocks(make_tokens(), MASK, rows, BlockLayout(block_length, extra=6))
    ids, positions = (jnp.asarray(packed[name]).reshape(rows, -1) for name in ("segment_ids", "positions"))
    return Segments.packed(ids, positions, BATCH * CAPTIONS // rows, LENGTH, block_length)


def is_target_token() -> np.ndarray:
    return ((make_tokens()[..., 1:] != 1) & MASK[:, None, None]).reshape(-1, LENGTH)


FORMS = [(1, None), (2, None), (4, None), (1, 8), (2, 8), (4, 16)]  # rows and block length


@pytest.mark.parametrize(("rows", "block_length"), FORMS)
def test_tokens_are_unpacked_to_their_captions_and_padding_is_zero(rows, block_length):
    x = np.random.default_rng(1).normal(size=(BATCH * CAPTIONS, LENGTH, 2, 5)).astype(np.float32)
    segments, expected = make_segments(rows, block_length), np.where(is_target_token()[..., None, None], x, 0)
    packed = segments.to_rows(jnp.asarray(x))
    assert packed.shape == (*segments.segment_ids.shape, 2, 5)
    np.testing.assert_array_equal(segments.to_captions(packed), expected)
    gradient = jax.jit(jax.grad(lambda x: (segments.to_rows(x) ** 2).sum()))(x)
    np.testing.assert_allclose(gradient, 2 * expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda y: (segments.to_captions(y) ** 2).sum()))(packed)
    np.testing.assert_allclose(gradient, 2 * packed, rtol=1e-6)


@pytest.mark.parametrize(("rows", "block_length"), FORMS)
def test_token_ids_do_not_depend_on_packing(rows, block_length):
    segments = make_segments(rows, block_length)
    unpacked = Segments.one_per_row((BATCH, CAPTIONS, LENGTH)).token_ids
    is_token, is_target = np.asarray(segments.segment_ids) > 0, is_target_token()
    ids = np.asarray(segments.token_ids)[is_token]
    np.testing.assert_array_equal(np.sort(ids), unpacked.reshape(-1, LENGTH)[is_target])
    memories = segments.to_memories(jnp.arange(BATCH))
    token_images = memories[segments.memory_ids(len(memories))][is_token]
    np.testing.assert_array_equal(token_images, ids // (CAPTIONS * LENGTH))


def test_the_memories_of_blocks_are_those_of_their_images_and_their_gradients_are_summed():
    segments = make_segments(2, block_length=8)
    memory = jnp.asarray(np.random.default_rng(4).normal(size=(BATCH, 3, 2)), jnp.float32)
    memories = segments.to_memories(memory)
    blocks = 2 * (BATCH // 2 + 6)
    assert memories.shape == (blocks, 3, 2) and segments.segment_ids.shape == (2, blocks // 2 * 8)
    weights = jnp.arange(1.0, blocks + 1)[:, None, None]
    gradient = jax.jit(jax.grad(lambda memory: (weights * segments.to_memories(memory)).sum()))(memory)
    images = np.asarray(segments.to_memories(jnp.arange(BATCH)))
    np.testing.assert_allclose(gradient[:, 0, 0], [weights[images == image].sum() for image in range(BATCH)], rtol=1e-6)
    first_images = np.asarray(segments.to_blocks(segments.caption_ids))[:, 0] // CAPTIONS
    is_used = np.asarray(segments.to_blocks(segments.segment_ids))[:, 0] > 0
    np.testing.assert_array_equal(images[is_used], first_images[is_used])
    assert len(images[is_used]) > BATCH  # there are captions in extra blocks


def assert_close(ours, reference):
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "block_length"), [(0, None), *FORMS])  # 0 for unpacked rows
def test_attention_equals_the_reference(rows, block_length):
    rng = np.random.default_rng(2)
    unpacked = Segments.one_per_row((BATCH, CAPTIONS, LENGTH))
    segments = make_segments(rows, block_length) if rows else unpacked
    token_shape = (*segments.row_shape, segments.segment_ids.shape[-1])

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    qkv, queries, weights = normal(*token_shape, 3, 2, 4), normal(*token_shape, 2, 4), normal(*token_shape, 8)
    memories = len(segments.to_memories(jnp.arange(BATCH)))
    keys, values = normal(memories, 2, 4, 6), normal(memories, 2, 6, 4)
    mask = jnp.asarray(rng.random((memories, 6)) < 0.7)
    is_token_position = jnp.broadcast_to(segments.segment_ids > 0, token_shape)[..., None]

    def compute_gradients(self_attention, cross_attention):
        def loss(qkv, queries, keys, values):
            self_attended = self_attention(qkv, segments)
            memory_attended, attention = cross_attention(queries, keys, values, mask, segments)
            attention = jnp.where(is_token_position, jnp.swapaxes(attention, -3, -2).reshape(*token_shape, -1), 0)
            return jnp.where(is_token_position, weights * (self_attended + 2 * memory_attended), 0).sum(), (
                self_attended * is_token_position,
                memory_attended * is_token_position,
                attention,
            )

        return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(qkv, queries, keys, values)

    ours = compute_gradients(attention.caption_attention, attention.memory_attention)
    reference = compute_gradients(attention.caption_attention_reference, attention.memory_attention_reference)
    jax.tree.map(assert_close, ours, reference)


@pytest.mark.parametrize("shards", [1, 2])
def test_attention_in_chunks_of_blocks_equals_attention_in_all_blocks(shards, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_SIZE", 3)
    segments = make_segments(2, block_length=8)
    ids, rng = segments.to_blocks(segments.segment_ids), np.random.default_rng(5)
    qkv = jnp.asarray(rng.normal(size=(*ids.shape, 3, 2, 4)), jnp.float32)
    weights = jnp.where(ids[..., None] > 0, jnp.asarray(rng.normal(size=(*ids.shape, 8)), jnp.float32), 0)

    def compute_loss(qkv, op):
        output = op(qkv, ids) * weights
        return (output**2).sum(), output

    chunked = functools.partial(attention._attend_in_chunks, shards=shards)
    ours, expected = (
        jax.jit(jax.grad(functools.partial(compute_loss, op=op), has_aux=True))(qkv)
        for op in (chunked, attention._attend_in_blocks)
    )
    jax.tree.map(assert_close, ours, expected)
