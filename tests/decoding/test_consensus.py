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
from caption_jax.decoding.token_ngrams import NgramFrequencies, count_documents, find_words, hash_ngrams
from caption_jax.errors import ConfigError
from caption_jax.metrics.bleu import bleu_statistics
from caption_jax.metrics.cider import DocumentFrequencies, cider_d
from caption_jax.metrics.ngrams import count_ngrams
from caption_jax.metrics.rouge import rouge_l
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK
from input_pipeline.tokenizer import Tokenizer, Vocabulary

LENGTH, SPECIAL = 12, (BOS, PAD, EOS, UNK)
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
    vocabulary = make_vocabulary()
    is_word = find_words(vocabulary, SPECIAL)
    return Consensus(is_word, count_documents(REFERENCES, vocabulary, is_word, 20))


def clean(text: str) -> str:
    return " ".join(text.replace(".", " ").replace(",", " ").split())


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


def encode(captions: list[str]) -> np.ndarray:
    """Returns the tokens of captions after <s>, as decoding does."""
    return make_vocabulary().encode_batch(captions, LENGTH + 1)[:, 1:]


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_expected_scores_equal_the_metrics(metric, data):
    words = st.sampled_from(["a", "red", "dog", "cat", "runs", "on", "the", "mat", "."])
    captions = data.draw(st.lists(st.lists(words, max_size=8).map(" ".join), min_size=5, max_size=5))
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=5, max_size=5)), np.float32)
    actual = expect_on_device(encode(captions)[None], weights[None], metric)[0]
    np.testing.assert_allclose(actual, expect_on_host(metric, captions, weights), atol=2e-5)


def test_document_frequencies_are_those_of_the_words():
    is_word = make_consensus().is_word
    vocabulary, frequencies = make_vocabulary(), make_consensus().frequencies
    expected = DocumentFrequencies.from_references([list(map(clean, texts)) for texts in REFERENCES]).counts
    assert frequencies.images == 4 and sorted(frequencies.counts) == sorted(n for n in expected.values() if n > 1)
    assert (np.diff(frequencies.hashes.astype(np.int64)) > 0).all()
    table = dict(zip(frequencies.hashes.tolist(), frequencies.counts.tolist(), strict=True))
    for ngram, count in expected.items():
        ids = np.array([i for i in vocabulary.encode(ngram, 20) if is_word[i]], np.int32)
        (hashed,) = hash_ngrams(ids, len(ids)).tolist()
        assert table.get(hashed, 1) == count
    assert not is_word[list(SPECIAL)].any() and not is_word[vocabulary.encode(".", 3)[1]]


def test_hashes_are_equal_on_the_host_and_the_device_and_hardly_collide():
    words = np.random.default_rng(0).integers(0, 4000, (50_000, 6)).astype(np.int32)
    hashes = []
    for order in range(1, 5):
        on_host = hash_ngrams(words, order)
        np.testing.assert_array_equal(on_host, hash_ngrams(jnp.asarray(words), order))
        windows = np.lib.stride_tricks.sliding_window_view(words, order, axis=1).reshape(-1, order)
        distinct, first = np.unique(windows, axis=0, return_index=True)
        hashes.append(on_host.reshape(-1)[first])
        assert len(distinct) == len(first)
    hashes = np.concatenate(hashes)
    pairs = len(hashes) ** 2 / 2 / 2**32  # expected number of collisions of random hashes
    assert len(hashes) > 500_000 and len(hashes) - len(np.unique(hashes)) < 2 * pairs


def make_decoded(captions: list[str], log_probs: list[float]) -> Decoded:
    tokens = encode(captions)[None]
    per_token = np.zeros(tokens.shape, np.float32)
    per_token[0, :, 0] = log_probs
    return Decoded(jnp.asarray(tokens), jnp.asarray(per_token), jnp.asarray([log_probs], jnp.float32))


def test_beams_are_weighted_by_probability_and_samples_equally():
    captions, log_probs = ["a dog runs", "a dog sits", "two cats on the mat"], [-1.0, -2.0, -1.5]
    decoded = make_decoded(captions, log_probs)
    beam = consensus_scores(decoded, DecodeSpec(method="beam", num_beams=3), make_consensus())[0]
    np.testing.assert_allclose(beam, expect_on_host("CIDEr-D", captions, np.exp(log_probs)), atol=1e-5)
    sampled = consensus_scores(decoded, DecodeSpec(method="sample", num_samples=3), make_consensus())[0]
    np.testing.assert_allclose(sampled, expect_on_host("CIDEr-D", captions, np.ones(3)), atol=1e-5)
    alone = decoded.replace(all_scores=jnp.asarray([[-1.0, -jnp.inf, -jnp.inf]]))
    assert consensus_scores(alone, DecodeSpec(method="beam", num_beams=3), make_consensus())[0, 0] == 0


@pytest.mark.parametrize("method", [pytest.param("beam", marks=pytest.mark.slow), "sample"])
def test_decode_ranks_by_score_and_consensus(method):
    variables, memory = make_random_captioner(3)
    is_word = np.array([False] * 4 + [True] * (MODEL.decoder.vocabulary_size - 4))
    consensus = Consensus(is_word, NgramFrequencies(10, np.zeros(0, np.uint32), np.zeros(0, np.int32)))
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
    consensus = Consensus(np.ones(9, bool))
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
        expected_scores(jnp.zeros((1, 2, 4), int), jnp.ones((1, 2)), "CIDEr-D", Consensus(np.ones(9, bool)))
    with pytest.raises(ConfigError, match=r"consensus_metric is 'METEOR'; it must be 'CIDEr-D', 'BLEU-4' or 'ROUGE-L'"):
        DecodeSpec(consensus_metric="METEOR")
