"""Greedy decoding, ensembles, attention, and the independence of every method from batch, padding and devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_captioner import (
    BOS,
    EOS,
    LENGTH,
    MODEL,
    PAD,
    VOCABULARY_SIZE,
    compute_next_log_probs,
    make_random_captioner,
    pad_caption,
)

from caption_jax.decoding import decode, greedy
from caption_jax.decoding.constraints import banned_tokens, max_length, min_length
from caption_jax.specs import DecodeSpec

NO_SPECIAL_TOKENS = [banned_tokens([BOS, PAD])]


def decode_greedily(log_probs_by_prefix) -> tuple[list[int], list[float]]:
    """Decodes from next-token log-probabilities. Returns the tokens and their log-probabilities, padded to `LENGTH`."""
    tokens: tuple[int, ...] = ()
    token_log_probs = []
    while len(tokens) < LENGTH and tokens[-1:] != (EOS,):
        log_probs = log_probs_by_prefix[tokens].copy()
        log_probs[[BOS, PAD]] = -np.inf
        tokens = (*tokens, int(log_probs.argmax()))
        token_log_probs.append(log_probs.max())
    return pad_caption(tokens), token_log_probs + [0.0] * (LENGTH - len(token_log_probs))


@pytest.fixture(scope="module")
def run_greedy():
    return jax.jit(
        lambda variables, memory: greedy(MODEL, variables, memory, max_length=5, constraints=NO_SPECIAL_TOKENS)
    )


@pytest.mark.parametrize("seed", [1, 3, 6, 9, 27, 37])
def test_greedy_decoding_matches_the_reference(run_greedy, seed):
    variables, memory = make_random_captioner(seed, images=8)
    decoded = run_greedy(variables, memory)
    for image, log_probs_by_prefix in enumerate(compute_next_log_probs(variables, memory)):
        tokens, token_log_probs = decode_greedily(log_probs_by_prefix)
        assert decoded.tokens[image].tolist() == tokens
        np.testing.assert_allclose(decoded.token_log_probs[image], token_log_probs, atol=1e-5)
        assert decoded.log_prob[image] == pytest.approx(sum(token_log_probs), abs=1e-5)


def test_captions_end_at_different_steps(run_greedy):
    """Ensures that the tests above cover batches with finished and unfinished captions."""
    variables, memory = make_random_captioner(27, images=8)
    lengths = (np.asarray(run_greedy(variables, memory).tokens) != PAD).sum(-1)
    assert len(set(lengths.tolist())) > 1


def test_decoding_stops_when_all_captions_are_finished():
    variables, memory = make_random_captioner(0)
    variables["params"]["decoder"]["output_bias"][EOS] += 50
    steps = []

    def record_step(log_probs, progress):
        jax.debug.callback(lambda step: steps.append(int(step)), progress.step)
        return log_probs

    decoded = greedy(MODEL, variables, memory, max_length=5, constraints=[min_length(3, eos_id=EOS), record_step])
    jax.block_until_ready(decoded.tokens)
    jax.effects_barrier()
    assert decoded.tokens[:, 1].tolist() == [EOS, EOS]
    assert max(steps) == 1


def test_max_length_includes_start_and_end_tokens():
    variables, memory = make_random_captioner(0)
    variables["params"]["decoder"]["output_bias"][EOS] -= 50
    assert greedy(MODEL, variables, memory, max_length=4).tokens.shape == (2, 3)
    assert greedy(MODEL, variables, memory, max_length=99).tokens.shape == (2, LENGTH)
    truncated = decode(MODEL, variables, memory, DecodeSpec(max_length=4))
    assert EOS not in np.asarray(truncated.tokens) and PAD not in np.asarray(truncated.tokens)
    finished = decode(MODEL, variables, memory, DecodeSpec(max_length=4, at_limit="end"))
    assert (np.asarray(finished.tokens)[:, -1] == EOS).all()


def test_unsatisfiable_constraints_yield_an_empty_caption():
    variables, memory = make_random_captioner(0)
    unsatisfiable = [min_length(9, eos_id=EOS), max_length(3, eos_id=EOS)]
    decoded = greedy(MODEL, variables, memory, max_length=5, constraints=unsatisfiable)
    assert (np.asarray(decoded.tokens) == PAD).all()
    assert np.isneginf(decoded.log_prob).all()


@pytest.fixture(scope="class")
def decode_batch(config):
    """`decode` with a `config`, compiled once for all tests of `TestIndependence`."""

    def run(variables, memory, ids, mask=None):
        spec = DecodeSpec(**{**config, "max_length": 5})
        return decode(MODEL, variables, memory, spec, image_ids=ids, memory_mask=mask)

    return jax.jit(run)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "greedy"},
        pytest.param({"method": "beam", "num_beams": 3, "alpha": 0.7, "candidates": 2}, marks=pytest.mark.slow),
        {"method": "beam", "num_beams": 4, "groups": 2, "no_repeat_ngram": 2, "min_length": 3},
        {"method": "sample", "num_samples": 3, "seed": 4},
    ],
    ids=lambda config: f"{config['method']}-{config.get('groups', 1)}",
    scope="class",
)
class TestIndependence:
    """Results do not depend on the other images of a batch, on memory padding or on the number of devices."""

    def test_other_images_have_no_effect(self, decode_batch):
        variables, memory = make_random_captioner(12, images=8)
        ids = np.arange(8)
        expected = decode_batch(variables, memory, ids)
        reversed_batch = decode_batch(variables, memory[::-1], ids[::-1])
        self.assert_equal_results(jax.tree.map(lambda x: x[::-1], reversed_batch), expected)
        padded = decode_batch(variables, np.where((ids % 2)[:, None, None], 0, memory), ids)
        self.assert_equal_results(*(jax.tree.map(lambda x: x[::2], decoded) for decoded in (padded, expected)))
        smaller_batch = decode_batch(variables, memory[5:8], ids[5:8])
        self.assert_equal_results(smaller_batch, jax.tree.map(lambda x: x[5:8], expected))

    def test_memory_padding_has_no_effect(self, decode_batch):
        variables, memory = make_random_captioner(12, images=8)
        ids = np.arange(8)
        noise = np.random.default_rng(0).normal(size=(8, 4, memory.shape[-1])).astype(np.float32)
        mask = np.broadcast_to(np.arange(memory.shape[1] + 4) < memory.shape[1], (8, memory.shape[1] + 4))
        padded = decode_batch(variables, np.concatenate([memory, noise], axis=1), ids, mask)
        self.assert_equal_results(padded, decode_batch(variables, memory, ids))

    @pytest.mark.usefixtures("eight_devices")
    def test_the_number_of_devices_has_no_effect(self, decode_batch):
        variables, memory = make_random_captioner(12, images=8)
        mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
        ids = np.arange(8)
        expected = decode_batch(variables, memory, ids)
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        sharded = decode_batch(variables, jax.device_put(memory, sharding), jax.device_put(ids, sharding))
        assert len(sharded.all_tokens.sharding.device_set) == 8
        self.assert_equal_results(sharded, expected)

    def assert_equal_results(self, actual, expected):
        np.testing.assert_array_equal(actual.all_tokens, expected.all_tokens)
        np.testing.assert_allclose(actual.all_scores, expected.all_scores, atol=1e-5)
        np.testing.assert_allclose(actual.all_token_log_probs, expected.all_token_log_probs, atol=1e-5)


def test_an_ensemble_averages_probabilities():
    (first, memory), (second, other_memory) = make_random_captioner(3), make_random_captioner(4)
    pairs = zip(compute_next_log_probs(first, memory), compute_next_log_probs(second, other_memory), strict=True)
    models, weights, memories = (MODEL, MODEL), (first, second), (memory, other_memory)
    decoded = greedy(models, weights, memories, max_length=5, constraints=NO_SPECIAL_TOKENS)
    for image, (first_log_probs, second_log_probs) in enumerate(pairs):
        averaged = {
            prefix: np.log((np.exp(log_probs) + np.exp(second_log_probs[prefix])) / 2)
            for prefix, log_probs in first_log_probs.items()
        }
        tokens, token_log_probs = decode_greedily(averaged)
        assert decoded.tokens[image].tolist() == tokens
        np.testing.assert_allclose(decoded.token_log_probs[image], token_log_probs, atol=1e-5)


def test_an_ensemble_of_two_copies_matches_the_model():
    variables, memory = make_random_captioner(3)
    config = {"method": "beam", "num_beams": 3, "alpha": 1.0, "max_length": 5}
    single = jax.jit(lambda v, m: decode(MODEL, v, m, DecodeSpec(**config)))(variables, memory)
    ensemble = jax.jit(lambda v, m: decode([MODEL] * 2, [v] * 2, [m] * 2, DecodeSpec(**config)))(variables, memory)
    np.testing.assert_array_equal(ensemble.tokens, single.tokens)
    np.testing.assert_allclose(ensemble.score, single.score, atol=1e-5)


def test_invalid_ensembles_are_rejected():
    variables, memory = make_random_captioner(3)
    with pytest.raises(ValueError, match="an ensemble of 2 models requires one set"):
        greedy([MODEL] * 2, [variables], [memory] * 2, max_length=5)
    larger_model = MODEL.clone(decoder=MODEL.decoder.clone(vocabulary_size=VOCABULARY_SIZE + 1))
    with pytest.raises(ValueError, match=r"\[6, 7\] tokens"):
        greedy([MODEL, larger_model], [variables] * 2, [memory] * 2, max_length=5)


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_attention_weights_are_returned(method):
    variables, memory = make_random_captioner(5)
    mask = jnp.array([[True, True, False], [True, True, True]])
    config = {"method": method, "num_beams": 2, "candidates": 2 if method == "beam" else 1, "max_length": 5}

    @jax.jit
    def run(variables, memory):
        spec = DecodeSpec(**config)
        decoded = decode(MODEL, variables, memory, spec, memory_mask=mask, return_attention=True)
        cache = MODEL.apply(variables, memory, memory_mask=mask, method="start_cache")
        return decoded, MODEL.apply(
            variables, jnp.zeros((2, 1, 1), int), cache=cache, return_attention=True, method="decode"
        )

    decoded, first_step = run(variables, memory)
    is_token = np.asarray(decoded.all_tokens) != PAD
    np.testing.assert_allclose(decoded.all_attention.sum(-1), is_token, atol=1e-5)
    assert (np.asarray(decoded.attention)[0, :, 2] == 0).all() and (np.asarray(decoded.attention)[1, 0] > 0).all()
    np.testing.assert_allclose(decoded.attention[:, 0], first_step.attention[0, :, 0].mean(1)[:, 0], atol=1e-5)
