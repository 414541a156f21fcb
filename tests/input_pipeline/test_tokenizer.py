"""The RoBERTa tokenizer, tokenizers trained on captions, and compact vocabularies."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_jax.config import default_config
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK
from input_pipeline.tokenizer import Tokenizer, Vocabulary, build_vocabulary

CAPTIONS = [
    "A dog runs.",
    "two dogs run on the grass",
    "a  dog \n on the grass",
    "the cat sits on the dog",
    "a cat and a dog",
    "a café in the rain",
    "the dog runs in the rain",
] * 3


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    data = default_config().data
    data.vocabulary_size = 320
    return build_vocabulary(data, CAPTIONS)[0]


@pytest.fixture(scope="module")
def roberta(shared_data) -> Tokenizer:
    return Tokenizer.from_folder(shared_data / "roberta-base-tokenizer")


def test_roberta_ids_match_published_ids(roberta):
    ids = roberta.encode("Hello world! cécé herlolip")
    assert ids == [0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2]
    assert roberta.decode(ids) == "Hello world! cécé herlolip"
    assert roberta.size == 50265


def test_roberta_ids_match_transformers(roberta, shared_data):
    from transformers import RobertaTokenizerFast

    folder = shared_data / "roberta-base-tokenizer"
    reference = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    with open(shared_data / "flickr8k" / "captions.csv", encoding="utf-8", newline="") as file:
        captions = [" ".join(row["caption"].split()) for row in list(csv.DictReader(file))[:2000]]
    assert roberta.encode_batch(captions) == reference(captions)["input_ids"]


def test_special_tokens_in_captions_are_encoded_as_text(roberta):
    ids = roberta.encode("a </s> b <mask>")
    assert ids.count(EOS) == 1 and ids[-1] == EOS
    assert roberta.decode(ids) == "a </s> b <mask>"


def test_the_first_word_has_the_same_id_as_in_other_positions(vocabulary):
    as_first, as_second = vocabulary.encode("dog", 8), vocabulary.encode("a dog", 8)
    assert as_first[1] == as_second[2]
    assert vocabulary.decode(as_first) == "dog"


def test_encoded_captions_are_padded_and_decoded_in_lower_case(vocabulary):
    ids = vocabulary.encode("  A DOG  runs ", 12)
    assert ids.dtype == np.int32 and ids.shape == (12,)
    end = ids.tolist().index(EOS)
    assert ids[0] == BOS and set(ids[end + 1 :].tolist()) == {PAD}
    assert vocabulary.decode(ids) == "a dog runs"
    assert vocabulary.decode(ids[1:]) == "a dog runs"


def test_decode_stops_at_the_first_end_token(vocabulary):
    ids = vocabulary.encode("a dog", 6).tolist()
    assert vocabulary.decode([*ids[: ids.index(EOS) + 1], *ids[1:]]) == "a dog"


def test_long_captions_are_truncated_without_an_end_token(vocabulary):
    ids = vocabulary.encode("the dog runs in the rain", 4)
    assert EOS not in ids and PAD not in ids
    assert vocabulary.decode(ids) == "the dog runs"


def test_unseen_tokens_are_encoded_as_unknown_and_omitted_by_decode(vocabulary):
    ids = vocabulary.encode("a 猫 dog", 16)
    assert UNK in ids
    assert vocabulary.decode(ids) == "a dog"


def test_compact_ids_map_to_full_ids_and_back(roberta):
    vocabulary = Vocabulary(roberta, [token for ids in roberta.encode_batch(CAPTIONS) for token in ids])
    full = np.array(roberta.encode(CAPTIONS[1]))
    compact = vocabulary.to_compact(full)
    assert vocabulary.size < 60 and compact.max() < vocabulary.size
    np.testing.assert_array_equal(vocabulary.to_full(compact), full)
    assert np.all(np.diff(vocabulary.to_full(np.arange(vocabulary.size))) > 0)
    assert vocabulary.to_compact([50000]).tolist() == [UNK]


def test_full_vocabularies_map_ids_to_themselves():
    data = default_config().data
    data.vocabulary_size, data.compact_vocabulary = 320, False
    vocabulary, _ = build_vocabulary(data, CAPTIONS)
    assert vocabulary.size == vocabulary.tokenizer.size <= 320
    np.testing.assert_array_equal(vocabulary.to_full(np.arange(vocabulary.size)), np.arange(vocabulary.size))


def test_saved_vocabularies_are_loaded_unchanged(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary")
    loaded = Vocabulary.load(tmp_path / "vocabulary")
    assert loaded == vocabulary
    np.testing.assert_array_equal(loaded.encode_batch(CAPTIONS, 12), vocabulary.encode_batch(CAPTIONS, 12))
    assert loaded.tokenizer.lowercase and loaded.tokenizer.add_prefix_space


def test_training_is_deterministic(vocabulary):
    data = default_config().data
    data.vocabulary_size = 320
    assert build_vocabulary(data, CAPTIONS)[0] == vocabulary


def test_case_is_preserved_on_request():
    data = default_config().data
    data.lowercase = False
    vocabulary, _ = build_vocabulary(data, CAPTIONS)
    assert vocabulary.decode(vocabulary.encode("A dog", 8)) == "A dog"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_trained_tokenizers_round_trip_any_text(vocabulary, text):
    expected = " ".join(text.split()).lower()
    assert vocabulary.tokenizer.decode(vocabulary.tokenizer.encode(text)) == expected


def test_missing_files_and_invalid_arguments_are_rejected(tmp_path, vocabulary):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"vocabulary\.json"):
        Vocabulary.load(tmp_path)
    with pytest.raises(ValueError, match="vocabulary_size must be at least 261"):
        Tokenizer.train(CAPTIONS, 100)
    with pytest.raises(ValueError, match="no training caption"):
        Tokenizer.train(["", " "], 400)
    with pytest.raises(ValueError, match="token id 99999"):
        Vocabulary(vocabulary.tokenizer, [99999])
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="RoBERTa's layout"):
        Tokenizer.from_folder(tmp_path)


def test_texts_that_are_not_valid_unicode_are_encoded(vocabulary):
    np.testing.assert_array_equal(vocabulary.encode("a dog \udce9", 12), vocabulary.encode("a dog ?", 12))


def test_huge_texts_are_truncated_before_they_are_encoded(vocabulary):
    start = time.monotonic()
    ids = vocabulary.encode("a dog " * 5_000_000, 8)
    assert time.monotonic() - start < 5
    np.testing.assert_array_equal(ids, vocabulary.encode("a dog " * 8, 8))
