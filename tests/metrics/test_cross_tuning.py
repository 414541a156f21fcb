"""Cross-tuning: settings selected on one half of the images are evaluated on the other."""

from __future__ import annotations

import random

from caption_jax.metrics import cross_tune, split_by_hash


def test_each_half_uses_the_best_setting_of_the_other():
    captions = [{i: f"{word} {i}" for i in range(4)} for word in ("first", "second", "third")]
    halves = [0, 2], [1, 3]
    actual, chosen = cross_tune(captions, halves, ([0.5, 0.1, 0.4], [0.1, 0.2, 0.9]))
    assert chosen == (2, 0)
    assert actual == {0: "third 0", 1: "first 1", 2: "third 2", 3: "first 3"} and list(actual) == [0, 1, 2, 3]


def test_ties_select_the_first_setting():
    captions = [{0: "a", 1: "a"}, {0: "b", 1: "b"}]
    assert cross_tune(captions, ([0], [1]), ([0.3, 0.3], [0.0, 0.0])) == ({0: "a", 1: "a"}, (0, 0))


def test_halves_depend_only_on_the_seed_and_the_ids():
    ids = [f"{i}.jpg" for i in range(101)]
    first, second = split_by_hash(ids, seed=3)
    assert (len(first), len(second)) == (50, 51) and set(first) | set(second) == set(ids)
    assert first == sorted(first, key=ids.index), "in the order of the input"
    shuffled = random.Random(0).sample(ids, len(ids))
    assert set(split_by_hash(shuffled, seed=3)[0]) == set(first)
    assert set(split_by_hash(ids, seed=4)[0]) != set(first)
    assert 15 < len(set(first) & set(ids[::2])) < 35, "independent of the order"
