"""`config.decode`: every key is passed to its decoding method, and words are converted to token ids."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from tiny_captioner import EOS, MODEL, make_random_captioner

from caption_jax.decoding import beam_search, decode, sample
from caption_jax.decoding.constraints import banned_tokens
from caption_jax.decoding.dispatch import make_constraints
from caption_jax.specs import DecodeSpec, build_spec

NO_SPECIAL_TOKENS = [banned_tokens([0, 1])]


class LetterVocabulary:
    """A vocabulary of letters, with the word "be" encoded as two tokens."""

    def encode(self, text, max_length):
        ids = [0]
        for word in text.replace(".", " .").split():
            ids += {"a": [3], "b": [4], "be": [4, 5], "e": [5], ".": [6]}[word]
        return np.array([*ids, EOS] + [1] * (max_length - len(ids) - 1))


def compile_decode(config: dict, vocabulary=None):
    """Compiles `decode` with the decoding method of the config, for use with many sets of variables."""
    spec = DecodeSpec(**config)
    return jax.jit(functools.partial(decode, MODEL, spec=spec, vocabulary=vocabulary))


def test_beam_settings_are_passed_to_beam_search():
    variables, memory = make_random_captioner(6)
    options = {"num_beams": 4, "candidates": 2, "length_penalty": "gnmt", "alpha": 1.5, "groups": 2, "diversity": 1.0}
    actual = compile_decode({"method": "beam", **options})(variables, memory)
    run_beam_search = functools.partial(beam_search, MODEL, max_length=40, constraints=NO_SPECIAL_TOKENS, **options)
    expected = jax.jit(run_beam_search)(variables, memory)
    np.testing.assert_array_equal(actual.all_tokens, expected.all_tokens)
    np.testing.assert_allclose(actual.all_scores, expected.all_scores, atol=1e-6)


def test_sampling_settings_are_passed_to_sample():
    variables, memory = make_random_captioner(6)
    options = {"num_samples": 5, "temperature": 1.7, "top_k": 3, "top_p": 0.9}
    actual = compile_decode({"method": "sample", "seed": 3, **options})(variables, memory)
    run_sample = functools.partial(sample, MODEL, max_length=40, constraints=NO_SPECIAL_TOKENS, **options)
    expected = jax.jit(run_sample)(variables, memory, jax.random.key(3))
    np.testing.assert_array_equal(actual.all_tokens, expected.all_tokens)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_constraints_are_satisfied(method):
    config = {"method": method, "num_beams": 3, "min_length": 5, "no_repeat_ngram": 1, "prefix": "b", "at_limit": "end"}
    run = compile_decode(config, LetterVocabulary())
    for seed in range(4):
        for caption in np.asarray(run(*make_random_captioner(seed)).tokens):
            assert caption[0] == 4 and caption[3] == EOS and len(set(caption.tolist())) == 4


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_immediate_repeats_are_forbidden(method):
    config = {"method": method, "num_samples": 8, "min_length": 5}
    repeats = {"allow": 0, "forbid": 0}
    for setting in repeats:
        run = compile_decode({**config, "immediate_repeats": setting})
        for seed in range(4):
            tokens = np.asarray(run(*make_random_captioner(seed)).all_tokens)
            repeats[setting] += int(((tokens[..., 1:] == tokens[..., :-1]) & (tokens[..., 1:] > EOS)).sum())
    assert repeats["forbid"] == 0 < repeats["allow"]


def test_banned_words_and_endings_are_not_generated():
    settings = {"banned_words": ("be",), "banned_endings": ("a", "e b")}
    assert len(make_constraints(DecodeSpec(**settings), LetterVocabulary())) == 3
    variables, memory = make_random_captioner(0)
    config = {"method": "beam", "num_beams": 4, "candidates": 4, "banned_words": ("be",), "banned_endings": ("a",)}
    unconstrained = compile_decode({**config, "banned_words": (), "banned_endings": ()})(variables, memory)
    unconstrained = np.asarray(unconstrained.all_tokens)
    constrained = compile_decode(config, LetterVocabulary())(variables, memory)
    constrained = constrained.all_tokens.reshape(-1, 4).tolist()
    assert not np.array_equal(unconstrained.reshape(-1, 4), constrained)
    for caption in constrained:
        letters = [token for token in caption if token in (3, 4, 5)]
        assert [4, 5] not in [letters[i : i + 2] for i in range(len(letters))]
        assert letters[-1:] != [3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "viterbi"}, "'viterbi'"),
        ({"beam": 3}, "no key 'beam'; did you mean 'num_beams'"),
        ({"at_limit": "stop"}, "at_limit"),
        ({"immediate_repeats": "no"}, "immediate_repeats"),
        ({"repetition_penalty": 0.5}, "1 or more"),
        ({"banned_words": ("a",)}, "pass the vocabulary"),
    ],
)
def test_invalid_configs_are_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        decode(MODEL, *make_random_captioner(0), build_spec(DecodeSpec, config, "decode"))
