"""Scores on the device equal those of the metrics on the host."""

from __future__ import annotations

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_compilation import QUICK_COMPILATION
from reward_captions import CAPTIONS, HostScores, make_split, make_vocabulary

from caption_jax.rewards.caption_words import find_words
from caption_jax.rewards.device_scores import bleu_4, cider_d, pairwise_cider_d, rouge_l
from caption_jax.rewards.reward_tables import build_reward_tables
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK

IMAGES, CANDIDATES, LENGTH = len(CAPTIONS), 3, 14
TOLERANCE = 1e-5


@functools.partial(jax.jit, static_argnames="include_end", compiler_options=QUICK_COMPILATION)
def score(tables, tokens, index, include_end=True):
    words = find_words(tokens, tables.words, include_end=include_end)
    references = tables.references.select(index)
    return words, {
        "cider_d": cider_d(words, *references, tables.frequencies),
        "bleu_4": bleu_4(words, *references),
        "rouge_l": rouge_l(words, *references),
    }


@functools.cache
def make_setup(include_end: bool = True):
    split = make_split()
    vocabulary = make_vocabulary(split)
    tables = jax.tree.map(jnp.asarray, build_reward_tables(split, vocabulary, include_end=include_end))
    return vocabulary, tables, HostScores(split, include_end=include_end)


def check_scores(tokens: np.ndarray, setup, include_end: bool = True, index: np.ndarray | None = None) -> float:
    """Compares the scores of captions whose numbers of words agree. Returns the fraction of these captions."""
    vocabulary, tables, host = setup
    index = np.arange(len(tokens), dtype=np.int32) if index is None else index
    words, scores = jax.device_get(score(tables, tokens, index, include_end=include_end))
    compared = 0
    for row in np.ndindex(tokens.shape[:2]):
        text = host.tokenize(vocabulary, tokens[row])
        if not has_words(tables, words.keys[row], words.counts[row], text):
            continue
        compared += 1
        expected = host.score(int(index[row[0]]), text)
        actual = {name: float(values[row]) for name, values in scores.items()}
        assert actual == pytest.approx(expected, abs=TOLERANCE), text
    return compared / np.prod(tokens.shape[:2])


def has_words(tables, keys, count, text: str) -> bool:
    """Whether the keys of a caption are those of the words of a tokenized text."""
    expected = text.split()
    if count != len(expected):
        return False
    has_end = expected[-1:] == ["</s>"]
    return not has_end or np.array_equal(keys[count - 1], np.asarray(tables.words.end))


def make_tokens(vocabulary, texts) -> np.ndarray:
    """Returns the token ids of texts [images, candidates] after <s>."""
    return np.stack([vocabulary.encode_batch(row, LENGTH + 1)[:, 1:] for row in texts])


@pytest.mark.parametrize("include_end", [True, False])
def test_scores_of_captions_equal_the_metrics(include_end):
    setup = make_setup(include_end)
    for shift in (0, 1, 3):  # captions of the image itself, and of other images
        texts = [[CAPTIONS[(image + shift) % IMAGES][k % 2] for k in range(CANDIDATES)] for image in range(IMAGES)]
        assert check_scores(make_tokens(setup[0], texts), setup, include_end) == 1


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_of_random_tokens_equal_the_metrics(data):
    setup = make_setup()
    size = setup[0].size
    # The first ids are special tokens, which the decoded text does not contain, and </s>, which ends it.
    token = st.one_of(st.sampled_from([BOS, PAD, EOS, UNK]), st.integers(4, size - 1), st.integers(size - 60, size - 1))
    seed, starts = data.draw(st.integers(0, 2**31)), data.draw(st.lists(token, min_size=LENGTH, max_size=LENGTH))
    rng = np.random.default_rng(seed)
    tokens = rng.integers(size - 100, size, (IMAGES, CANDIDATES, LENGTH)).astype(np.int32)
    tokens[0, 0] = starts
    for row in np.ndindex(IMAGES, CANDIDATES):
        tokens[row][rng.integers(0, 2 * LENGTH) :] = EOS
    assert check_scores(tokens, setup) > 0.5


def test_no_candidate_is_scored_against_images_without_references():
    _, tables, _ = make_setup()
    words = find_words(jnp.full((1, 1, LENGTH), 5), tables.words, include_end=True)
    references, is_reference = tables.references.select(jnp.zeros(1, jnp.int32))
    assert cider_d(words, references, jnp.zeros_like(is_reference), tables.frequencies)[0, 0] == 0


def test_pairwise_scores_treat_other_candidates_as_references():
    vocabulary, tables, _ = make_setup()
    texts = [[captions[k % len(captions)] for k in range(CANDIDATES)] for captions in CAPTIONS]
    words = find_words(make_tokens(vocabulary, texts), tables.words, include_end=True)
    pairwise = np.asarray(pairwise_cider_d(words, words, tables.frequencies))
    references, _ = tables.references.select(jnp.arange(IMAGES))
    pairs = np.asarray(pairwise_cider_d(words, references, tables.frequencies))
    np.testing.assert_allclose(pairwise[:, :, :2], pairs[:, :, :2], atol=TOLERANCE)
    assert pairwise[0, 0, 0] == pytest.approx(10)
    assert pairwise[0, 0, 1] < 5


@pytest.mark.slow
def test_scores_of_5000_captions_of_photographs_equal_the_metrics(shared_data):
    with open(shared_data / "flickr8k" / "captions.csv", encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    split = make_split([captions[first : first + 5] for first in range(0, 5000, 5)])
    vocabulary = make_vocabulary(split, 3000)
    setup = vocabulary, jax.tree.map(jnp.asarray, build_reward_tables(split, vocabulary)), HostScores(split)
    rng = np.random.default_rng(0)
    compared = []
    for first in range(0, 1000, 100):
        own = [list(split[image].captions) for image in range(first, first + 100)]
        tokens = np.stack([vocabulary.encode_batch(row, 40)[:, 1:] for row in own])
        is_replaced = rng.random(tokens.shape) < 0.1
        tokens = np.where(is_replaced & (tokens != PAD), rng.integers(4, vocabulary.size, tokens.shape), tokens)
        compared.append(check_scores(tokens, setup, index=np.arange(first, first + 100, dtype=np.int32)))
    assert np.mean(compared) > 0.97
