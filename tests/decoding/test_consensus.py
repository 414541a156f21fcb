"""Consensus of candidates: scores equal those of the metrics, document frequencies, and the choice by `decode`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_captioner import MODEL, make_random_captioner

from caption_jax.decoding import Consensus, Decoded, consensus_scores, decode, expected_scores
from caption_jax.errors import ConfigError
from caption_jax.metrics.bleu import bleu_statistics
from caption_jax.metrics.cider import DocumentFrequencies, cider_d
from caption_jax.metrics.ngrams import count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.metrics.rouge import rouge_l
from caption_jax.rewards.caption_words import MAX_WORDS_PER_CHUNK, WordTable, build_word_table
from caption_jax.rewards.frequency_table import FrequencyTable
from caption_jax.rewards.reference_frequencies import count_references
from caption_jax.rewards.word_keys import TextHash
from caption_jax.specs import DecodeSpec
from input_pipeline.tokenizer import Tokenizer, Vocabulary

LENGTH = 12
REFERENCES = [
    ["a red dog runs on the grass.", "a dog runs"],
    ["a red dog sits on the mat", "the dog sits, on a mat."],
    ["two cats sit on the mat", "two cats on the mat on the mat"],
    ["a red cat runs on the grass", "a cat runs"],
]
METRICS = ("CIDEr-D", "BLEU-4", "ROUGE-L")


@functools.cache
def make_vocabulary() -> Vocabulary:
    """Returns a vocabulary in which each word of `REFERENCES` is one token."""
    tokenizer = Tokenizer.train([text for texts in REFERENCES for text in texts] * 3, 400)
    return Vocabulary(tokenizer, range(tokenizer.size))


@functools.cache
def make_consensus() -> Consensus:
    counted = count_ngrams(tokenize_all([text for texts in REFERENCES for text in texts]))
    seed, _, frequencies = count_references(counted, [len(texts) for texts in REFERENCES])
    return Consensus(build_word_table(make_vocabulary(), (), TextHash(seed)), frequencies)


def make_token_words(size: int) -> WordTable:
    """Returns a table in which each token is a word."""
    offsets, multipliers = TextHash(0).compute(str(token).encode() for token in range(size))
    flags, unused = np.ones(size, bool), np.zeros((1, 2), np.uint32)
    chunk_words = np.zeros((1, MAX_WORDS_PER_CHUNK, 2), np.uint32)
    return WordTable(offsets, multipliers, flags, ~flags, unused, chunk_words, np.ones(1, np.int32), unused, unused[0])


def clean(text: str) -> str:
    """Returns the words of a caption, as the metrics count them."""
    return tokenize_all([text])[0]


def compare_on_host(metric: str, hypothesis: str, reference: str) -> float:
    """Scores a caption against one reference with the functions of `caption_jax.metrics`."""
    counted = count_ngrams([reference, hypothesis])
    if metric == "ROUGE-L":
        return rouge_l(hypothesis, [reference]) if hypothesis and reference else 0.0
    if metric == "CIDEr-D":
        frequencies = DocumentFrequencies.from_references([list(map(clean, texts)) for texts in REFERENCES])
        return float(cider_d(counted, 1, np.array([0, 0]), frequencies)[0])
    length, reference_length, *counts = bleu_statistics(counted, 1, np.array([0, 0]))[0].astype(float)
    if not counts[4]:
        return 0.0
    precisions = [counts[4] / counts[0], *((counts[4 + n] + 1) / (counts[n] + 1) for n in (1, 2, 3))]
    return float(np.prod(precisions) ** 0.25 * min(1.0, np.exp(1 - reference_length / length)))


def expect_on_host(metric: str, captions: list[str], probabilities: np.ndarray) -> list[float]:
    words = list(map(clean, captions))
    expected = []
    for i, hypothesis in enumerate(words):
        others = [j for j in range(len(words)) if j != i]
        scores = [compare_on_host(metric, hypothesis, words[j]) for j in others]
        total = probabilities[others].sum()
        expected.append(float(np.dot(scores, probabilities[others]) / total) if total > 0 else 0.0)
    return expected


@functools.partial(jax.jit, static_argnames="metric")
def expect_on_device(tokens, probabilities, metric):
    return expected_scores(tokens, probabilities, metric, make_consensus())


def encode(captions: list[str], length: int = LENGTH) -> np.ndarray:
    """Returns the tokens of captions after <s>, as decoding does."""
    return make_vocabulary().encode_batch(captions, length + 1)[:, 1:]


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_expected_scores_equal_the_metrics(metric, data):
    words = st.sampled_from(["a", "red", "dog", "cat", "runs", "on", "the", "mat", "."])
    captions = data.draw(st.lists(st.lists(words, max_size=8).map(" ".join), min_size=5, max_size=5))
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=5, max_size=5)), np.float32)
    actual = expect_on_device(encode(captions)[None], weights[None], metric)[0]
    np.testing.assert_allclose(actual, expect_on_host(metric, captions, weights), atol=2e-5)


def test_words_of_several_tokens_are_compared_as_words():
    words = ["unseenword", "dogcat", "redredred", "matter,"]  # not in the vocabulary
    captions = [f"a {word} runs" for word in words] + ["a unseenword runs.", "a matter runs"]
    ids = make_vocabulary().encode("unseenword", 20)
    assert len(ids) > 4  # with <s> and </s>
    weights = np.ones(len(captions), np.float32)
    for metric in METRICS:
        actual = expect_on_device(encode(captions, 40)[None], weights[None], metric)[0]
        np.testing.assert_allclose(actual, expect_on_host(metric, captions, weights), atol=2e-5)


def make_decoded(captions: list[str], log_probs: list[float]) -> Decoded:
    tokens = encode(captions)[None]
    per_token = np.zeros(tokens.shape, np.float32)
    per_token[0, :, 0] = log_probs
    return Decoded(jnp.asarray(tokens), jnp.asarray(per_token), jnp.asarray([log_probs], jnp.float32))


def test_beams_are_weighted_by_probability_and_samples_equally():
    captions, log_probs = ["a dog runs", "a dog sits", "two cats on the mat"], [-1.0, -2.0, -1.5]
    decoded = make_decoded(captions, log_probs)
    score = jax.jit(functools.partial(consensus_scores, consensus=make_consensus()), static_argnames="spec")
    beam = score(decoded, spec=DecodeSpec(method="beam", num_beams=3))[0]
    np.testing.assert_allclose(beam, expect_on_host("CIDEr-D", captions, np.exp(log_probs)), atol=1e-5)
    sampled = score(decoded, spec=DecodeSpec(method="sample", num_samples=3))[0]
    np.testing.assert_allclose(sampled, expect_on_host("CIDEr-D", captions, np.ones(3)), atol=1e-5)
    alone = decoded.replace(all_scores=jnp.asarray([[-1.0, -jnp.inf, -jnp.inf]]))
    assert score(alone, spec=DecodeSpec(method="beam", num_beams=3))[0, 0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["beam", "sample"])
def test_decode_ranks_by_score_and_consensus(method):
    variables, memory = make_random_captioner(3)
    frequencies = FrequencyTable(np.zeros((1, 2), np.uint32), np.zeros(1, np.float32), np.float32(2.3))
    consensus = Consensus(make_token_words(MODEL.decoder.vocabulary_size), frequencies)
    options = {"method": method, "num_beams": 4, "num_samples": 4, "max_length": 6}
    everything = {**options, "candidates": 4} if method == "beam" else options

    def run(spec: dict) -> Decoded:
        return jax.jit(lambda v, m: decode(MODEL, v, m, DecodeSpec(**spec), consensus=consensus))(variables, memory)

    plain = run(everything)
    for metric in METRICS:
        utility = consensus_scores(plain, DecodeSpec(**everything, consensus_metric=metric), consensus)
        expected = plain.all_scores + 2.0 * utility
        order = np.argsort(-expected, axis=1, kind="stable")
        ranked = run({**everything, "consensus_weight": 2.0, "consensus_metric": metric})
        best = run({**options, "consensus_weight": 2.0, "consensus_metric": metric})
        np.testing.assert_allclose(ranked.all_scores, np.take_along_axis(expected, order, 1), atol=1e-5)
        chosen = np.take_along_axis(np.asarray(plain.all_tokens), order[..., None], 1)
        np.testing.assert_array_equal(ranked.all_tokens, chosen)
        np.testing.assert_array_equal(best.tokens, chosen[:, 0])


def test_the_ranking_is_the_same_on_eight_devices(eight_devices):
    tokens = np.random.default_rng(0).integers(4, 9, (8, 5, 6)).astype(np.int32)
    probabilities = np.random.default_rng(1).uniform(size=(8, 5)).astype(np.float32)
    consensus = Consensus(make_token_words(9))
    compute = jax.jit(lambda t, p: expected_scores(t, p, "BLEU-4", consensus))
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    sharded = compute(jax.device_put(tokens, sharding), jax.device_put(probabilities, sharding))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, compute(tokens, probabilities), atol=1e-6)


def test_missing_inputs_are_reported():
    variables, memory = make_random_captioner(3)
    with pytest.raises(ConfigError, match="pass `consensus` to decode"):
        decode(MODEL, variables, memory, DecodeSpec(method="beam", consensus_weight=1.0))
    with pytest.raises(ConfigError, match=r"config\.decode\.consensus_weight=1\.0 reranks candidates"):
        decode(MODEL, variables, memory, DecodeSpec(consensus_weight=1.0))
    with pytest.raises(ConfigError, match="requires the document frequencies"):
        expected_scores(jnp.zeros((1, 2, 4), int), jnp.ones((1, 2)), "CIDEr-D", Consensus(make_token_words(9)))
    with pytest.raises(ConfigError, match=r"consensus_metric is 'METEOR'; it must be 'CIDEr-D', 'BLEU-4' or 'ROUGE-L'"):
        DecodeSpec(consensus_metric="METEOR")
