"""The tables of rewards: where they come from, and what is logged about them."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest
from reward_captions import CAPTIONS, make_split, make_vocabulary

from caption_jax.metrics import DocumentFrequencies
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.rewards import reference_frequencies
from caption_jax.rewards.reference_table import MAX_WORDS
from caption_jax.rewards.reward_tables import RewardTables, assume_reward_tables, build_reward_tables
from input_pipeline.errors import DataError


def test_frequencies_are_those_of_the_training_references():
    split = make_split()
    tables = build_reward_tables(split, make_vocabulary(split))
    tokens = iter(tokenize_all(split.captions))
    references = [[f"{next(tokens)} </s>" for _ in record.captions] for record in split]
    counts = DocumentFrequencies.from_references(references).counts
    expected = sorted(np.log(len(split)) - np.log(count) for count in counts.values() if count >= 2)
    np.testing.assert_allclose(np.sort(tables.frequencies.weights), expected, atol=1e-6)
    assert tables.frequencies.default_weight == pytest.approx(np.log(len(split)))


def test_each_image_has_its_own_references():
    split = make_split()
    references = build_reward_tables(split, make_vocabulary(split)).references
    assert references.counts.tolist() == [len(captions) for captions in CAPTIONS]
    words, is_reference = jax.tree.map(np.asarray, references.select(np.array([3, 0])))
    assert is_reference.sum(-1).tolist() == [len(CAPTIONS[3]), len(CAPTIONS[0])]
    assert words.counts[1, :3].tolist() == [7, 7, 9]  # with </s>


def test_tables_are_the_same_every_time_and_survive_storage():
    split = make_split()
    first, second = (build_reward_tables(split, make_vocabulary(split)) for _ in range(2))
    restored = RewardTables.from_dict(first.to_dict())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, first, restored)


def test_another_hash_is_chosen_if_keys_collide(monkeypatch):
    split = make_split()
    vocabulary = make_vocabulary(split)
    usual = build_reward_tables(split, vocabulary)
    answers = iter([True, False])
    monkeypatch.setattr(reference_frequencies, "has_collision", lambda keys: next(answers))
    assert not np.array_equal(build_reward_tables(split, vocabulary).words.offsets, usual.words.offsets)


def test_the_fraction_of_captions_with_other_words_is_logged(caplog):
    split = make_split([("a dog",)] * 39 + [("mr. x",)])
    with caplog.at_level(logging.INFO):
        build_reward_tables(split, make_vocabulary(split))
    assert "the words of 0 of 40 training captions (0.00 %) differ" in caplog.text
    caplog.clear()
    split = make_split([("a dog " * 200,), ("a dog",)])
    with caplog.at_level(logging.INFO):
        build_reward_tables(split, make_vocabulary(split))
    assert "the words of 1 of 2 training captions (50.00 %) differ" in caplog.text
    assert f"at most 256 tokens and {MAX_WORDS} words" in caplog.text


def test_a_split_without_captions_is_rejected():
    with pytest.raises(DataError, match="rewards require captions of the training images"):
        build_reward_tables(make_split([()]), make_vocabulary(make_split()))


def test_assumed_tables_have_the_structure_of_real_ones():
    split = make_split()
    vocabulary = make_vocabulary(split)
    tables = build_reward_tables(split, vocabulary).to_dict()
    assumed = assume_reward_tables(len(split), len(split.captions), vocabulary.size).to_dict()
    assert jax.tree.structure(assumed) == jax.tree.structure(tables)
    for shape, array in zip(jax.tree.leaves(assumed), jax.tree.leaves(tables), strict=True):
        assert shape.dtype == array.dtype and len(shape.shape) == array.ndim
    assert assumed["words"]["offsets"].shape == tables["words"]["offsets"].shape
    assert assumed["references"]["counts"].shape == tables["references"]["counts"].shape
