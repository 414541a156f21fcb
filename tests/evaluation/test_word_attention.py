"""Attention per word of a caption."""

from __future__ import annotations

import numpy as np
import pytest

from caption_jax.inference.image_attention import attention_per_word
from input_pipeline.special_tokens import EOS, PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    captions = ["a red square", "a blue circle"]
    tokenizer = Tokenizer.train(captions * 20, 300)
    return Vocabulary(tokenizer, range(tokenizer.size))


def test_attention_is_averaged_over_the_tokens_of_a_word(vocabulary):
    tokens = vocabulary.encode("a red zebra", 20)[1:]  # without <s>, as decoded
    attention = np.random.default_rng(0).random((len(tokens), 4), np.float32)
    words, per_word = attention_per_word(vocabulary, tokens, attention)
    spans = vocabulary.words_with_spans(tokens)
    assert words == ["a", "red", "zebra"]
    assert max(end - start for _, start, end in spans) > 1  # a word of several tokens
    np.testing.assert_allclose(per_word, [attention[start:end].mean(axis=0) for _, start, end in spans], rtol=1e-6)


def test_a_caption_without_words_has_no_attention(vocabulary):
    tokens = np.array([EOS, PAD, PAD], np.int32)
    words, per_word = attention_per_word(vocabulary, tokens, np.ones((3, 4), np.float32))
    assert words == []
    assert per_word.shape == (0, 4)
