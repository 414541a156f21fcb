"""Words of token ids on the device, compared with PTB tokens of the decoded text."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import QUICK_COMPILATION
from reward_captions import make_split, make_vocabulary

from caption_jax.metrics.ptb import tokenize_all
from caption_jax.rewards.caption_words import build_word_table, find_words
from caption_jax.rewards.word_keys import TextHash
from input_pipeline.special_tokens import EOS, PAD, UNK
from input_pipeline.tokenizer import Tokenizer, Vocabulary

HASH = TextHash(0)
find = jax.jit(find_words, static_argnames="include_end", compiler_options=QUICK_COMPILATION)


@functools.cache
def make_table():
    split = make_split()
    vocabulary = make_vocabulary(split)
    return vocabulary, build_word_table(vocabulary, split.captions, HASH)


def find_keys_of_text(text: str, vocabulary, table) -> list[list[int]]:
    """Returns the keys of the words of a text on the device."""
    tokens = vocabulary.encode_batch([text], 80)[:, 1:]
    words = find(jnp.asarray(tokens), jax_table(table), include_end=False)
    return np.asarray(words.keys[0, : words.counts[0]]).tolist()


def jax_table(table):
    return type(table)(*map(jnp.asarray, table))


@pytest.mark.parametrize(
    "text",
    [
        "a dog runs on the beach .",
        "a bench. the dog, a man! two birds?",  # punctuation after a word
        "don't o'clock t-shirt cannot the man's bike",  # chunks of the training captions
        "don't, o'clock! cannot.",  # the same before other punctuation
        "an unseen wombat's zebra-striped wombats",  # words and contractions that no training caption contains
        "caf\u00e9 cafe\u0301 \u00fcber",  # characters of several bytes
        "mr. smith's dog isn't mr. smith",  # abbreviations
        "( in red ) \u201cstop\u201d & #1",
        "... -- ; :",
        "",
    ],
)
def test_words_are_the_tokens_of_the_metrics(text):
    vocabulary, table = make_table()
    assert find_keys_of_text(text, vocabulary, table) == HASH.compute_keys(tokenize_all([text])[0].split()).tolist()


def test_words_do_not_depend_on_how_they_are_split_into_tokens():
    vocabulary, table = make_table()
    whole = find_keys_of_text("black-and-white beaches", vocabulary, table)
    characters = Tokenizer.train(["a"], 261)
    characters = Vocabulary(characters, range(characters.size))
    split = build_word_table(characters, make_split().captions, HASH)
    assert len(characters.encode("black-and-white", 40)) > len("black")
    assert find_keys_of_text("black-and-white beaches", characters, split) == whole


def test_the_case_of_a_cased_vocabulary_does_not_matter():
    split = make_split()
    tokenizer = Tokenizer.train(split.captions, 400, lowercase=False)
    vocabulary = Vocabulary(tokenizer, range(tokenizer.size))
    table = build_word_table(vocabulary, split.captions, HASH)
    assert find_keys_of_text("A DOG Runs", vocabulary, table) == find_keys_of_text("a dog runs", vocabulary, table)


def test_special_tokens_are_no_words_and_the_end_is_optional():
    vocabulary, table = make_table()
    dog = vocabulary.encode("a dog", 8)[1:].tolist()
    ids = dog[: dog.index(EOS)]
    rows = jnp.asarray(np.array([[*ids, EOS, *ids], [PAD, UNK, *ids, PAD]]))
    rows = jnp.pad(rows, ((0, 0), (0, 2)), constant_values=PAD)
    with_end, without_end = (find(rows, jax_table(table), include_end=value) for value in (True, False))
    assert without_end.counts.tolist() == [2, 2]
    assert with_end.counts.tolist() == [3, 2]  # the second caption was truncated
    assert with_end.last.tolist() == [table.end.tolist(), HASH.compute_keys(["dog"])[0].tolist()]


def test_a_stray_space_is_no_word():
    vocabulary, table = make_table()
    space = [i for i, token in enumerate(vocabulary.tokens) if token == "\u0120"]
    words = find(jnp.array([[*space, *space, EOS]]), jax_table(table), include_end=False)
    assert words.counts.tolist() == [0]
