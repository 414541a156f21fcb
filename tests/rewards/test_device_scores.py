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
from tiers import slow_or_long

from caption_jax.rewards.caption_words import find_words
from caption_jax.rewards.device_scores import bleu_4, cider_d, pairwise_cider_d, rouge_l
from caption_jax.rewards.reward_tables import build_reward_tables
from caption_jax.rewards.word_keys import TextHash
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK

IMAGES, CANDIDATES, LENGTH = len(CAPTIONS), 2, 24
HASH = TextHash(0)  # the first one that `build_reward_tables` tries
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
    """Compares the scores of captions whose words agree. Returns the fraction of these captions."""
    vocabulary, tables, host = setup
    index = np.arange(len(tokens), dtype=np.int32) if index is None else index
    words, scores = jax.device_get(score(tables, tokens, index, include_end=include_end))
    compared = 0
    for row in np.ndindex(tokens.shape[:2]):
        text = host.tokenize(vocabulary, tokens[row])
        expected_keys = HASH.compute_keys(text.split())
        if words.counts[row] != len(expected_keys) or (words.keys[row][: len(expected_keys)] != expected_keys).any():
            continue
        compared += 1
        expected = host.score(int(index[row[0]]), text)
        actual = {name: float(values[row]) for name, values in scores.items()}
        assert actual == pytest.approx(expected, abs=TOLERANCE), text
    return compared / np.prod(tokens.shape[:2])


def make_tokens(vocabulary, texts) -> np.ndarray:
    """Returns the token ids of texts [images, candidates] after <s>."""
    return np.stack([vocabulary.encode_batch(row, LENGTH + 1)[:, 1:] for row in texts])


@pytest.mark.parametrize("include_end", [True, False])
def test_scores_of_captions_equal_the_metrics(include_end):
    setup = make_setup(include_end)
    for shift in (0, 1, 3):  # captions of the image itself, and of other images
        texts = [[CAPTIONS[(image + shift) % IMAGES][k % 2] for k in range(CANDIDATES)] for image in range(IMAGES)]
        assert check_scores(make_tokens(setup[0], texts), setup, include_end) == 1


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.lists(st.sampled_from([BOS, PAD, UNK, EOS]) | st.integers(4, 260), max_size=LENGTH))
def test_scores_of_random_tokens_equal_the_metrics(seed, first_tokens):
    """Nearly all tokens start a word, as in captions; some captions have special tokens and parts of characters."""
    setup = make_setup()
    rng, size = np.random.default_rng(seed), setup[0].size
    words = [i for i, token in enumerate(setup[0].tokens) if token.startswith("\u0120") and token[1:].isalnum()]
    tokens = rng.choice(words, (IMAGES, CANDIDATES, LENGTH)).astype(np.int32)
    tokens = np.where(rng.random(tokens.shape) < 0.05, rng.integers(BOS, size, tokens.shape), tokens)
    for row in np.ndindex(IMAGES, CANDIDATES):
        tokens[row][rng.integers(0, LENGTH) :] = EOS
    tokens[0, 0, : len(first_tokens)] = first_tokens
    assert check_scores(tokens.astype(np.int32), setup) > 0.2  # usually 0.8


def test_captions_of_images_without_references_score_nothing():
    vocabulary, tables, _ = make_setup()
    references = tables.references._replace(counts=tables.references.counts.at[1].set(0))
    tokens = make_tokens(vocabulary, [list(CAPTIONS[0][:CANDIDATES])] * IMAGES)
    _, scores = score(tables._replace(references=references), tokens, np.arange(IMAGES, dtype=np.int32))
    assert scores["cider_d"][1].max() == scores["rouge_l"][1].max() == 0
    assert scores["cider_d"][0].min() > 1


def test_pairwise_scores_treat_other_candidates_as_references():
    vocabulary, tables, host = make_setup()
    texts = [[captions[k % 2][:12] for k in range(CANDIDATES)] for captions in CAPTIONS]
    tokens = make_tokens(vocabulary, texts)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
    def compare(tables, tokens):
        words = find_words(tokens, tables.words, include_end=True)
        return pairwise_cider_d(words, words, tables.frequencies)

    pairwise = np.asarray(compare(tables, tokens))
    for image, i, j in np.ndindex(pairwise.shape):
        caption, reference = (host.tokenize(vocabulary, tokens[image, candidate]) for candidate in (i, j))
        assert pairwise[image, i, j] == pytest.approx(host.score_pair(caption, reference), abs=TOLERANCE)
    assert pairwise[0, 0, 0] == pytest.approx(10, abs=TOLERANCE)
    assert 0 < pairwise[2, 0, 1] < 9


@pytest.mark.parametrize("count", slow_or_long([1000, 5000], slow=[1000]))
def test_scores_of_captions_of_photographs_equal_the_metrics(shared_data, count):
    with open(shared_data / "flickr8k" / "captions.csv", encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    split = make_split([captions[first : first + 5] for first in range(0, count, 5)])
    vocabulary = make_vocabulary(split, 3000)
    setup = vocabulary, jax.tree.map(jnp.asarray, build_reward_tables(split, vocabulary)), HostScores(split)
    rng = np.random.default_rng(0)
    unchanged, changed = [], []
    for first in range(0, count // 5, 100):
        index = np.arange(first, first + 100, dtype=np.int32)
        tokens = np.stack([vocabulary.encode_batch(split[image].captions, 40)[:, 1:] for image in index])
        unchanged.append(check_scores(tokens, setup, index=index))
        is_replaced = (rng.random(tokens.shape) < 0.1) & (tokens != PAD)
        tokens = np.where(is_replaced, rng.integers(4, vocabulary.size, tokens.shape), tokens)
        changed.append(check_scores(tokens, setup, index=index))
    # Random tokens join words and punctuation ("sky.ing"), which the tokens of captions do not.
    assert np.mean(unchanged) > 0.998 and np.mean(changed) > 0.85
