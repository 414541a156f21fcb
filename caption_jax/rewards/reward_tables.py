"""The tables of rewards on the device, computed from the training captions on the host."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, UInt32

from caption_jax.metrics.diversity import FUNCTION_WORDS
from caption_jax.metrics.ngrams import count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.rewards.caption_words import END, Words, WordTable, build_word_table, find_words
from caption_jax.rewards.frequency_table import FrequencyTable
from caption_jax.rewards.reference_frequencies import count_references
from caption_jax.rewards.reference_table import MAX_WORDS, ReferenceTable, build_reference_table
from caption_jax.rewards.word_keys import TextHash
from input_pipeline.errors import DataError
from input_pipeline.records import Split
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Vocabulary

_MAX_TOKENS = 256  # of captions whose words are compared
_CAPTIONS_PER_CALL = 2048
_TOLERATED_FRACTION = 0.05


class RewardTables(NamedTuple):
    """Tables that score captions of the training images, on the host or the device.

    Attributes:
        words: converts token ids to words.
        references: references of the images.
        frequencies: document frequencies of the n-grams of all references.
    """

    words: WordTable
    references: ReferenceTable
    frequencies: FrequencyTable

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns nested dictionaries of arrays, the constants of an objective."""
        return {name: table._asdict() for name, table in self._asdict().items()}

    @classmethod
    def from_dict(cls, tables: Mapping[str, Mapping[str, Any]]) -> RewardTables:
        """Inverts `to_dict`."""
        return cls(
            WordTable(**tables["words"]),
            ReferenceTable(**tables["references"]),
            FrequencyTable(**tables["frequencies"]),
        )


def build_reward_tables(train: Split, vocabulary: Vocabulary, *, include_end: bool = True) -> RewardTables:
    """Builds the tables, and logs the fraction of captions whose words on the device differ from those of the metrics.

    Args:
        train: the training split, the only source of references and document frequencies.
        vocabulary: vocabulary of the token ids.
        include_end: whether </s> is the last word of each reference.

    Raises:
        DataError: the split has no captions.
    """
    if not train.captions:
        raise DataError("rewards require captions of the training images, and there are none")
    end = f" {END}" if include_end else ""
    references = [f"{tokens}{end}" for tokens in tokenize_all(train.captions)]
    captions = count_ngrams(references)
    captions_per_image = [len(record.captions) for record in train]
    seed, word_keys, frequencies = count_references(captions, captions_per_image)
    tables = RewardTables(
        build_word_table(vocabulary, train.captions, TextHash(seed)),
        build_reference_table(word_keys, captions.lengths, captions_per_image),
        frequencies,
    )
    _log_differences(train.captions, vocabulary, tables, include_end)
    return tables


def assume_reward_tables(images: int, captions: int, vocabulary_size: int) -> RewardTables:
    """Returns the shapes of the tables of a typical dataset, in place of the arrays.

    The numbers of words and n-grams per caption are those of Flickr8k: 11.8 with the end, and 2.4 distinct n-grams that
    occur in the references of at least two images.

    Args:
        images: number of images.
        captions: number of captions.
        vocabulary_size: number of tokens.
    """

    def shape(*sizes: int, dtype: Any = np.uint32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    per_image, ngrams = -(-captions // images), round(2.4 * captions)
    return RewardTables(
        WordTable(
            *[shape(vocabulary_size, 2)] * 2,
            *[shape(vocabulary_size, dtype=bool)] * 2,
            chunk_keys=shape(100, 2),
            chunk_words=shape(100, 4, 2),
            chunk_counts=shape(100, dtype=np.int32),
            function_words=shape(len(FUNCTION_WORDS), 2),
            end=shape(2),
        ),
        ReferenceTable(
            shape(round(11.8 * captions), 2),
            *[shape(images, per_image, dtype=np.int32)] * 2,
            counts=shape(images, dtype=np.int32),
            positions=shape(40, dtype=np.int32),
        ),
        FrequencyTable(shape(ngrams, 2), shape(ngrams, dtype=np.float32), shape(dtype=np.float32)),
    )


def find_differences(
    captions: Sequence[str], vocabulary: Vocabulary, tables: RewardTables, *, include_end: bool
) -> Bool[np.ndarray, " captions"]:
    """Finds the captions whose words on the device differ from those in the table of references.

    Args:
        captions: the captions of `tables.references`, in order.
        vocabulary: vocabulary of the token ids.
        tables: the tables.
        include_end: see `build_reward_tables`.
    """
    find = jax.jit(functools.partial(find_words, include_end=include_end))
    references = tables.references
    is_reference = np.arange(references.starts.shape[1]) < references.counts[:, None]
    starts, lengths = references.starts[is_reference], references.lengths[is_reference]
    is_different, size = np.zeros(len(captions), bool), min(_CAPTIONS_PER_CALL, len(captions))
    for first in range(0, len(captions), size):
        batch = slice(first, min(first + size, len(captions)))
        texts = [*captions[batch], *[""] * (size - (batch.stop - first))]  # one compiled shape
        tokens = vocabulary.encode_batch(texts, _MAX_TOKENS)[:, 1:]
        longest = (tokens != PAD).sum(-1).max()
        length = 1 << int(longest - 1).bit_length()  # few shapes, each of which is compiled
        words = jax.device_get(find(tokens[:, :length], tables.words))
        for row in range(first, batch.stop):
            expected = references.keys[starts[row] : starts[row] + lengths[row]]
            is_different[row] = not _has_words(words, row - first, expected)
    return is_different


def _has_words(words: Words, row: int, expected: UInt32[np.ndarray, "words 2"]) -> bool:
    return words.counts[row] == len(expected) and np.array_equal(words.keys[row, : len(expected)], expected)


def _log_differences(captions: Sequence[str], vocabulary: Vocabulary, tables: RewardTables, include_end: bool) -> None:
    is_different = find_differences(captions, vocabulary, tables, include_end=include_end)
    count, fraction = is_different.sum(), is_different.mean()
    logging.info(
        "rewards: the words of %d of %d training captions (%.2f %%) differ between the device and the metrics",
        count,
        len(captions),
        100 * fraction,
    )
    if fraction > _TOLERATED_FRACTION:
        example = captions[int(is_different.argmax())][:200]
        logging.warning(
            "rewards differ from the metrics for %.0f %% of the training captions, such as %r: rewards count words "
            "of English (PTB tokens), and captions of at most %d tokens and %d words",
            100 * fraction,
            example,
            _MAX_TOKENS,
            MAX_WORDS,
        )
