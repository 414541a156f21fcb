"""Packing of sampled captions inside a jitted step."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_captions import make_split
from tiny_captioner import MODEL, VOCABULARY_SIZE, make_random_captioner

from caption_jax.objectives import sample_packing, sequence_reward
from caption_jax.objectives.sample_packing import fits, pack_tokens, packed_capacity
from caption_jax.objectives.sequence_reward import SequenceReward
from input_pipeline.packing import pack_captions
from input_pipeline.special_tokens import BOS, EOS, PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

IMAGES, CAPTIONS, LENGTH = 4, 3, 9  # targets per caption


def make_captions(seed: int) -> np.ndarray:
    """Returns captions from <s> to </s> of random lengths. One reaches the maximum length without </s>."""
    rng = np.random.default_rng(seed)
    tokens = np.full((IMAGES, CAPTIONS, LENGTH + 1), PAD, np.int32)
    for caption in tokens.reshape(-1, LENGTH + 1):
        words = rng.integers(0, LENGTH - 1)
        caption[: words + 2] = [BOS, *rng.integers(4, 50, words), EOS]
    tokens[1, 2] = [BOS, *rng.integers(4, 50, LENGTH)]
    return tokens


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_equal_those_packed_on_the_host(rows):
    tokens = make_captions(seed=0)
    expected = pack_captions(tokens, np.ones(IMAGES, bool), rows)
    capacity = expected["inputs"].shape[1]
    is_token = jnp.asarray(tokens[..., 1:] != PAD)
    assert fits(is_token, rows, capacity)
    packed = jax.jit(pack_tokens, static_argnums=(1, 2))(is_token, rows, capacity)
    shape = packed.segments.segment_ids.shape  # a single row has no axis
    assert packed.segments.per_row == IMAGES * CAPTIONS // rows and packed.segments.length == LENGTH
    np.testing.assert_array_equal(packed.segments.segment_ids, expected["segment_ids"].reshape(shape))
    np.testing.assert_array_equal(packed.segments.positions, expected["positions"].reshape(shape))
    np.testing.assert_array_equal(packed.take(jnp.asarray(tokens[..., :-1]), PAD), expected["inputs"].reshape(shape))
    np.testing.assert_array_equal(packed.take(jnp.asarray(tokens[..., 1:]), PAD), expected["targets"].reshape(shape))


def test_the_longest_row_determines_whether_captions_fit():
    is_token = jnp.zeros((4, 2, 6), bool).at[2:].set(True)
    assert packed_capacity(4, 2, 6, rows=2) == 16 < 24
    assert not fits(is_token, 2, 23) and fits(is_token, 2, 24)
    assert fits(is_token, 1, 24)


@pytest.mark.parametrize("dropout", [False, True])
def test_packed_and_padded_captions_have_the_same_loss_and_gradient(monkeypatch, dropout):
    objective = SequenceReward(samples=16, length=0.3, dropout=dropout)
    split = make_split([("a dog", "a a dog"), ("a",), ("dog dog",)])
    tokenizer = Tokenizer.train(split.captions, 270)
    words = [i for i in range(tokenizer.size) if tokenizer.id_to_token(i) in ("\u0120a", "\u0120dog")]
    constants = jax.tree.map(jnp.asarray, objective.prepare(split, Vocabulary(tokenizer, words)))
    assert len(words) + 4 == VOCABULARY_SIZE
    variables, memory = make_random_captioner(seed=0, images=2)
    batch = {"index": jnp.arange(2), "mask": jnp.ones(2, bool)}
    results = []

    def compute_loss(params):
        model = MODEL.clone(decoder=MODEL.decoder.clone(dropout=0.3)) if dropout else MODEL
        output = model.apply(
            {"params": params},
            method=lambda bound: objective(
                bound, SimpleNamespace(memory=memory, shards=1), batch, constants, jax.random.key(1)
            ),
            rngs={"dropout": jax.random.key(2)},
        )
        return output.losses["loss"].mean()

    monkeypatch.setattr(sample_packing, "PACKED_FRACTION", 1.0)
    for choice in (True, False):
        monkeypatch.setattr(sequence_reward, "fits", lambda *_, choice=choice: jnp.bool_(choice))
        results.append(jax.jit(jax.value_and_grad(compute_loss))(variables["params"]))
    (packed_loss, packed_gradient), (loss, gradient) = results
    assert float(packed_loss) == pytest.approx(float(loss), rel=1e-5) and abs(loss) > 1e-3
    for actual, expected in zip(jax.tree.leaves(packed_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * max(np.abs(expected).max(), 1e-2))
