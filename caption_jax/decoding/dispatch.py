"""One entrance to all decoding methods, by config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jaxtyping import Array, Bool, Int, Key

from caption_jax.config import default_config
from caption_jax.decoding import constraints as on
from caption_jax.decoding.beam import beam_search
from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.reranking import TextIds, rerank, similarities, to_be_ranked
from caption_jax.decoding.sampling import sample
from caption_jax.errors import ConfigError
from input_pipeline.special_tokens import BOS, EOS, PAD

# Runs that were started before a key existed take it from here.
DEFAULTS: dict[str, Any] = default_config().decode.to_dict()


class Words(Protocol):
    """What turns words into ids; `input_pipeline.tokenizer.Vocabulary` does."""

    def encode(self, text: str, max_length: int) -> Any:
        """Ids <s> ... </s>, filled up with <pad>."""


def decode(
    model: Any,
    variables: Any,
    features: Any,
    decode_config: Mapping[str, Any],
    *,
    vocabulary: Words | None = None,
    key: Key[Array, ""] | None = None,
    image_ids: Int[Array, " batch"] | None = None,
    constraints: Sequence[Constraint] = (),
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    text_ids: TextIds | None = None,
) -> Decoded:
    """Captions images as `config.decode` says. Can be traced by `jax.jit`.

    Args:
        model: the captioner, or a sequence of them: an ensemble averaged in probability.
        variables: its variables (of an ensemble: a sequence, one a model).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory (or a sequence).
        decode_config: the `decode` part of a config; keys that it lacks have their defaults.
        vocabulary: needed where the config names words.
        key: randomness of sampling; made from the config's seed by default.
        image_ids: a number an image, for sampling that does not depend on the batch; its place in it by default.
        constraints: more constraints than the config's.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        text_ids: from the decoder's token ids to those of the text encoder, where the model has one; for a config that
            ranks candidates by the image (`rerank_weight`).

    Raises:
        ValueError: an unknown method or key, words without a vocabulary, or a ranking that the model cannot do.
    """
    unknown = sorted(set(decode_config) - set(DEFAULTS))
    if unknown:
        raise ConfigError(f"config.decode has unknown keys {', '.join(unknown)}; it has {', '.join(DEFAULTS)}")
    settings = {**DEFAULTS, **decode_config}
    weight, count = settings["rerank_weight"], 0
    if weight:
        settings, count = to_be_ranked(settings, model, text_ids)
    shared = {
        "max_length": settings["max_length"],
        "constraints": [*constraints_from(settings, vocabulary), *constraints],
        "memory_mask": memory_mask,
        "return_attention": return_attention,
        "bos_id": BOS,
        "eos_id": EOS,
        "pad_id": PAD,
    }
    if settings["method"] == "sample":
        shared |= {"key": jax.random.key(settings["seed"]) if key is None else key, "image_ids": image_ids}
    decoded = _by_method(settings, model, variables, features, shared)
    if not weight:
        return decoded
    fit = similarities(model, variables, features, decoded.all_tokens, text_ids, bos_id=BOS, pad_id=PAD)
    return rerank(decoded, fit, weight, count)


def _by_method(settings: Mapping[str, Any], model: Any, variables: Any, features: Any, shared: dict) -> Decoded:
    if settings["method"] == "greedy":
        return greedy(model, variables, features, **shared)
    if settings["method"] == "beam":
        names = ("beams", "candidates", "length_penalty", "alpha", "groups", "diversity")
        return beam_search(model, variables, features, **{name: settings[name] for name in names}, **shared)
    if settings["method"] == "sample":
        names = ("draws", "temperature", "top_k", "top_p")
        return sample(model, variables, features, **{name: settings[name] for name in names}, **shared)
    raise ConfigError(f'config.decode.method is {settings["method"]!r}; it must be "greedy", "beam" or "sample"')


def constraints_from(settings: Mapping[str, Any], vocabulary: Words | None = None) -> list[Constraint]:
    """The constraints that a config's `decode` part asks for; <s> and <pad> are always banned."""
    if settings["at_limit"] not in ("cut", "end"):
        raise ConfigError(f'config.decode.at_limit is {settings["at_limit"]!r}; it must be "cut" or "end"')
    if settings["double_tokens"] not in ("allow", "forbid"):
        raise ConfigError(
            f'config.decode.double_tokens is {settings["double_tokens"]!r}; it must be "allow" or "forbid"'
        )
    found = [on.banned_tokens([BOS, PAD])]
    if settings["min_length"] > 2:
        found.append(on.min_length(settings["min_length"], eos_id=EOS))
    if settings["no_repeat_ngram"]:
        found.append(on.no_repeat_ngram(settings["no_repeat_ngram"]))
    if settings["double_tokens"] == "forbid":
        found.append(on.no_double_tokens())
    if settings["repetition_penalty"] < 1:
        raise ConfigError(f"config.decode.repetition_penalty is {settings['repetition_penalty']}; it must be 1 or more")
    if settings["repetition_penalty"] > 1:
        found.append(on.repetition_penalty(settings["repetition_penalty"]))
    if settings["banned_words"]:
        found.append(on.banned_phrases([_inside(word, vocabulary) for word in settings["banned_words"]]))
    if settings["banned_endings"]:
        stopped = [word + stop for word in settings["banned_endings"] for stop in ("", ".", " .")]
        found.append(on.banned_endings([_inside(word, vocabulary) for word in stopped], eos_id=EOS))
    if settings["prefix"]:
        found.append(on.required_prefix(_ids(settings["prefix"], vocabulary)))
    if settings["at_limit"] == "end":
        found.append(on.max_length(eos_id=EOS))
    return found


def _inside(words: str, vocabulary: Words | None) -> list[int]:
    """Ids of words that stand inside a sentence: what they add to a word before them."""
    before = _ids("a", vocabulary)
    return _ids(f"a {words}", vocabulary)[len(before) :]


def _ids(text: str, vocabulary: Words | None) -> list[int]:
    if vocabulary is None:
        raise ConfigError(
            "config.decode names words (banned_words, banned_endings or prefix): pass the vocabulary to decode()"
        )
    ids = [int(i) for i in vocabulary.encode(text, 4 * len(text) + 2)]
    return [i for i in ids if i not in (BOS, PAD, EOS)]
