"""Keys of words and n-grams: composition, order and collisions."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

from caption_jax.rewards.sorted_keys import find_keys, never_empty, sort_keys
from caption_jax.rewards.word_keys import TextHash, as_integers, extend, has_collision, mix


def test_the_hash_of_a_text_is_composed_from_its_parts():
    text_hash, text = TextHash(1), b"black-and-white"
    whole, _ = text_hash.compute([text])
    for cut in range(len(text) + 1):
        offsets, multipliers = text_hash.compute([text[:cut], text[cut:]])
        np.testing.assert_array_equal(offsets[0] * multipliers[1] + offsets[1], whole[0])


def test_keys_of_all_short_texts_and_of_many_ngrams_do_not_collide():
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(text) for length in (1, 2, 3) for text in itertools.product(letters, repeat=length)]
    keys = TextHash(0).compute_keys(texts)
    assert not has_collision(keys)
    words = keys[:300]
    bigrams = extend(words[:, None], words[None]).reshape(-1, 2)  # "a b" and "b a" differ
    trigrams = extend(bigrams.reshape(300, 300, 1, 2)[:, :, 0], words[7]).reshape(-1, 2)
    assert not has_collision(np.concatenate([keys, bigrams, trigrams]))


def test_each_half_collides_as_often_as_a_random_function():
    """The bound on collisions assumes that the halves are uniform: 300,000 keys have 10.5 collisions on average."""
    words = TextHash(3).compute_keys(map(str, range(550)))
    keys = extend(words[:, None], words[None]).reshape(-1, 2)[:300_000]
    for half in (0, 1):
        assert 1 <= len(keys) - len(np.unique(keys[:, half])) <= 30
    assert len(np.unique(mix(keys), axis=0)) == len(keys)


def test_collisions_are_detected():
    keys = TextHash(0).compute_keys(["a", "b", "a"])
    assert has_collision(keys)
    assert not has_collision(keys[:2])


def test_stored_keys_are_found_and_no_others():
    keys = TextHash(0).compute_keys(map(str, range(1000)))
    keys[:20, 0] = 5  # keys that differ only in the second half
    for size in (0, 1, 2, 3, 8, 500):
        table = never_empty(keys[:size])
        table = table[sort_keys(table)]
        assert (np.diff(as_integers(table).astype(object)) > 0).all()
        index, is_found = find_keys(jnp.asarray(table), jnp.asarray(keys))
        np.testing.assert_array_equal(is_found, np.arange(1000) < size)
        np.testing.assert_array_equal(table[np.asarray(index)[:size]], keys[:size])
