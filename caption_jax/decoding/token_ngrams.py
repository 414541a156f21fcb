"""N-grams of token ids: hashes that NumPy and JAX compute alike, and document frequencies.

The words of a caption are approximated by its tokens. Tokens without a letter or digit, such as a period, are left out,
as the tokenization of the metrics does. A caption whose words are single tokens therefore has the same n-grams as in
`caption_jax.metrics`; a word of several tokens counts as several words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt32

from caption_jax.metrics.ngrams import MAX_ORDER

_PARTIAL = "\ufffd"  # decoded from a token that is a part of a character


class TokenTexts(Protocol):
    """Texts of tokens and token ids of texts; implemented by `input_pipeline.tokenizer.Vocabulary`."""

    size: int
    tokens: Sequence[str]

    def decode_tokens(self, ids: Any) -> list[str]:
        """Returns the text of each token."""

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "texts length"]:
        """Returns the token ids of texts from <s> to </s>, padded with <pad>."""


@dataclasses.dataclass(frozen=True)
class NgramFrequencies:
    """Document frequencies of n-grams of tokens: the number of images whose references contain them.

    N-grams that occur in a single image are not stored, because they have the same weight as those that occur in none.
    If two n-grams have the same hash, which happens to one in 4 x 10^9 / `len(hashes)` unknown n-grams, the
    frequency of one is used for the other.

    Attributes:
        images: number of images.
        hashes: hashes of the n-grams of all lengths, in ascending order.
        counts: number of images with each of them.
    """

    images: int
    hashes: UInt32[np.ndarray, " ngrams"]
    counts: Int32[np.ndarray, " ngrams"]


def find_words(vocabulary: TokenTexts, special_ids: Sequence[int]) -> Bool[np.ndarray, " vocabulary"]:
    """Returns which tokens contain a letter, a digit or a part of a character."""
    texts = vocabulary.decode_tokens(range(vocabulary.size))
    is_word = np.array([any(letter.isalnum() or letter == _PARTIAL for letter in text) for text in texts], bool)
    is_word[list(special_ids)] = False
    return is_word


def hash_ngrams(words: Any, order: int) -> Any:
    """Hashes the n-grams of each caption.

    Args:
        words: int32 token ids [..., length], as a NumPy or JAX array.
        order: n.

    Returns:
        uint32 hashes [..., length - n + 1] of the n-grams that start at each position.
    """
    count = words.shape[-1] - order + 1
    values = (words + 1).astype(np.uint32)
    hashed = values[..., :count] * 0 + np.uint32(0x811C9DC5 + order)
    for offset in range(order):
        hashed = (hashed ^ values[..., offset : offset + count]) * np.uint32(0x9E3779B1)
        hashed = hashed ^ (hashed >> np.uint32(15))
    hashed = hashed * np.uint32(0x85EBCA6B)
    return hashed ^ (hashed >> np.uint32(13))


def count_documents(
    captions: Sequence[Sequence[str]], vocabulary: TokenTexts, is_word: Bool[np.ndarray, " vocabulary"], max_length: int
) -> NgramFrequencies:
    """Counts the n-grams in the references of images.

    Args:
        captions: the references of each image.
        vocabulary: vocabulary of the captions.
        is_word: see `find_words`.
        max_length: number of tokens after which captions are cut.
    """
    image = np.repeat(np.arange(len(captions), dtype=np.uint64), [len(texts) for texts in captions])
    tokens = vocabulary.encode_batch([text for texts in captions for text in texts], max_length)
    keep = is_word[tokens]
    order = np.argsort(~keep, axis=1, kind="stable")
    words, lengths = np.take_along_axis(tokens, order, axis=1), keep.sum(1)
    hashes, counts = [], []
    for n in range(1, min(MAX_ORDER, max_length) + 1):
        hashed = hash_ngrams(words, n)
        is_ngram = np.arange(hashed.shape[1]) <= lengths[:, None] - n
        pairs = np.unique((image[:, None] << np.uint64(32) | hashed)[is_ngram])
        values, documents = np.unique(pairs.astype(np.uint32), return_counts=True)
        hashes.append(values[documents > 1])
        counts.append(documents[documents > 1])
    merged, first = np.unique(np.concatenate(hashes), return_index=True)  # n-grams of different lengths may collide
    return NgramFrequencies(len(captions), merged, np.concatenate(counts)[first].astype(np.int32))
