"""One entrance to all decoding methods, by config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
from jaxtyping import Array, Bool, Int, Key

from caption_jax.decoding import constraints as on
from caption_jax.decoding.beam import beam_search
from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.reranking import TextIds, rerank, similarities, to_be_ranked
from caption_jax.decoding.sampling import sample
from caption_jax.errors import ConfigError
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import BOS, EOS, PAD


class Words(Protocol):
    """What turns words into ids; `input_pipeline.tokenizer.Vocabulary` does."""

    def encode(self, text: str, max_length: int) -> Any:
        """Ids <s> ... </s>, filled up with <pad>."""


def decode(  # noqa: PLR0913 - by keyword: what a caller may know beyond the config
    model: Any,
    variables: Any,
    features: Any,
    spec: DecodeSpec,
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
        spec: `decode` of a run's spec.
        vocabulary: needed where the config names words.
        key: randomness of sampling; made from the config's seed by default.
        image_ids: a number an image, for sampling that does not depend on the batch; its place in it by default.
        constraints: more constraints than the config's.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        text_ids: from the decoder's token ids to those of the text encoder, where the model has one; for a config that
            ranks candidates by the image (`rerank_weight`).

    Raises:
        ConfigError: words without a vocabulary, or a ranking that the model cannot do.
    """
    weight, count = spec.rerank_weight, 0
    if weight:
        spec, count = to_be_ranked(spec, model, text_ids)
    shared = {
        "max_length": spec.max_length,
        "constraints": [*constraints_from(spec, vocabulary), *constraints],
        "memory_mask": memory_mask,
        "return_attention": return_attention,
        "bos_id": BOS,
        "eos_id": EOS,
        "pad_id": PAD,
    }
    if spec.method == "sample":
        shared |= {"key": jax.random.key(spec.seed) if key is None else key, "image_ids": image_ids}
    decoded = _by_method(spec, model, variables, features, shared)
    if not weight:
        return decoded
    fit = similarities(model, variables, features, decoded.all_tokens, text_ids, bos_id=BOS, pad_id=PAD)
    return rerank(decoded, fit, weight, count)


def _by_method(spec: DecodeSpec, model: Any, variables: Any, features: Any, shared: dict) -> Decoded:
    if spec.method == "greedy":
        return greedy(model, variables, features, **shared)
    if spec.method == "beam":
        names = ("beams", "candidates", "length_penalty", "alpha", "groups", "diversity")
        return beam_search(model, variables, features, **{name: getattr(spec, name) for name in names}, **shared)
    names = ("draws", "temperature", "top_k", "top_p")
    return sample(model, variables, features, **{name: getattr(spec, name) for name in names}, **shared)


def constraints_from(spec: DecodeSpec, vocabulary: Words | None = None) -> list[Constraint]:
    """The constraints that a config's `decode` part asks for; <s> and <pad> are always banned."""
    found = [on.banned_tokens([BOS, PAD])]
    if spec.min_length > 2:
        found.append(on.min_length(spec.min_length, eos_id=EOS))
    if spec.no_repeat_ngram:
        found.append(on.no_repeat_ngram(spec.no_repeat_ngram))
    if spec.double_tokens == "forbid":
        found.append(on.no_double_tokens())
    if spec.repetition_penalty > 1:
        found.append(on.repetition_penalty(spec.repetition_penalty))
    if spec.banned_words:
        found.append(on.banned_phrases([_inside(word, vocabulary) for word in spec.banned_words]))
    if spec.banned_endings:
        stopped = [word + stop for word in spec.banned_endings for stop in ("", ".", " .")]
        found.append(on.banned_endings([_inside(word, vocabulary) for word in stopped], eos_id=EOS))
    if spec.prefix:
        found.append(on.required_prefix(_ids(spec.prefix, vocabulary)))
    if spec.at_limit == "end":
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
