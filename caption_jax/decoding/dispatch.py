"""Caption decoding with the method and settings of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from caption_jax.decoding.beam import beam_search
from caption_jax.decoding.consensus import Consensus
from caption_jax.decoding.constraints import (
    Constraint,
    banned_endings,
    banned_phrases,
    banned_tokens,
    max_length,
    min_length,
    no_immediate_repeats,
    no_repeat_ngram,
    repetition_penalty,
    required_prefix,
)
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.reranking import (
    TextIds,
    consensus_scores,
    make_reranking_settings,
    rerank,
    similarities,
)
from caption_jax.decoding.sampling import sample
from caption_jax.errors import ConfigError
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import BOS, EOS, PAD


class Tokenizer(Protocol):
    """Maps text to token ids; implemented by `input_pipeline.tokenizer.Vocabulary`."""

    def encode(self, text: str, max_length: int) -> Any:
        """Returns the token ids of <s>, the text and </s>, padded with <pad>."""


def decode(  # noqa: PLR0913 - keyword-only: inputs that are not part of the config
    model: Any,
    variables: Any,
    features: Any,
    spec: DecodeSpec,
    *,
    vocabulary: Tokenizer | None = None,
    key: Key[Array, ""] | None = None,
    image_ids: Int[Array, " batch"] | None = None,
    constraints: Sequence[Constraint] = (),
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    text_ids: TextIds | None = None,
    consensus: Consensus | None = None,
) -> Decoded:
    """Generates captions with the method and settings of `config.decode`. Can be traced by `jax.jit`.

    Args:
        model: a captioner, or a sequence of captioners (an ensemble, whose probabilities are averaged).
        variables: variables of the model (for an ensemble, a sequence with one entry per model).
        features: image features from `ImageCaptioningModel.encode_images`, or only the memory array (for an ensemble,
            a sequence with one entry per model).
        spec: the `decode` section of a run's spec.
        vocabulary: required if the config sets banned words, banned endings or a prefix.
        key: PRNG key for sampling; created from the config's seed if None.
        image_ids: one integer per image, which makes its samples independent of the batch; the index in the batch if
            None.
        constraints: additional constraints, applied after the constraints of the config.
        memory_mask: True for memory positions to attend to; all positions if None.
        return_attention: also return the cross-attention of each token.
        text_ids: maps token ids of the decoder to token ids of the text encoder; required if `rerank_weight` is not 0,
            which uses the joint embedding of the first model of an ensemble.
        consensus: see `expected_scores`; required if `consensus_weight` is not 0.

    Raises:
        ConfigError: the config requires a vocabulary but none is passed, or the model does not support reranking.
    """
    is_ensemble = not isinstance(model, ImageCaptioningModel)
    ranker = (model[0], variables[0], features[0]) if is_ensemble else (model, variables, features)
    count = 0
    if spec.ranks_candidates:
        spec, count = make_reranking_settings(spec, ranker[0], text_ids)
    options = {
        "max_length": spec.max_length,
        "constraints": [*make_constraints(spec, vocabulary), *constraints],
        "memory_mask": memory_mask,
        "return_attention": return_attention,
        "bos_id": BOS,
        "eos_id": EOS,
        "pad_id": PAD,
    }
    if spec.method == "sample":
        options |= {"key": jax.random.key(spec.seed) if key is None else key, "image_ids": image_ids}
    decoded = _run_method(spec, model, variables, features, options)
    if not spec.ranks_candidates:
        return decoded
    total = jnp.zeros(decoded.all_scores.shape, jnp.float32)
    if spec.rerank_weight:
        similarity = similarities(*ranker, decoded.all_tokens, text_ids, bos_id=BOS, pad_id=PAD)
        total += spec.rerank_weight * similarity
    if spec.consensus_weight:
        total += spec.consensus_weight * consensus_scores(decoded, spec, consensus)
    return rerank(decoded, total, 1.0, count)


def _run_method(spec: DecodeSpec, model: Any, variables: Any, features: Any, options: dict) -> Decoded:
    if spec.method == "greedy":
        return greedy(model, variables, features, **options)
    if spec.method == "beam":
        names = ("num_beams", "candidates", "length_penalty", "alpha", "groups", "diversity")
        return beam_search(model, variables, features, **{name: getattr(spec, name) for name in names}, **options)
    names = ("num_samples", "temperature", "top_k", "top_p")
    return sample(model, variables, features, **{name: getattr(spec, name) for name in names}, **options)


def make_constraints(spec: DecodeSpec, vocabulary: Tokenizer | None = None) -> list[Constraint]:
    """Makes the constraints of a `decode` section. <s> and <pad> are always forbidden."""
    constraints = [banned_tokens([BOS, PAD])]
    if spec.min_length > 2:
        constraints.append(min_length(spec.min_length, eos_id=EOS))
    if spec.no_repeat_ngram:
        constraints.append(no_repeat_ngram(spec.no_repeat_ngram))
    if spec.immediate_repeats == "forbid":
        constraints.append(no_immediate_repeats())
    if spec.repetition_penalty > 1:
        constraints.append(repetition_penalty(spec.repetition_penalty))
    if spec.banned_words:
        constraints.append(banned_phrases([_encode_mid_sentence(word, vocabulary) for word in spec.banned_words]))
    if spec.banned_endings:
        endings = [word + period for word in spec.banned_endings for period in ("", ".", " .")]
        constraints.append(banned_endings([_encode_mid_sentence(word, vocabulary) for word in endings], eos_id=EOS))
    if spec.prefix:
        constraints.append(required_prefix(_encode(spec.prefix, vocabulary)))
    if spec.at_limit == "end":
        constraints.append(max_length(eos_id=EOS))
    return constraints


def _encode_mid_sentence(words: str, vocabulary: Tokenizer | None) -> list[int]:
    """Returns the token ids of words in the middle of a sentence, which can differ from the ids at its start."""
    prefix = _encode("a", vocabulary)
    return _encode(f"a {words}", vocabulary)[len(prefix) :]


def _encode(text: str, vocabulary: Tokenizer | None) -> list[int]:
    if vocabulary is None:
        raise ConfigError(
            "config.decode contains words (banned_words, banned_endings or prefix): pass the vocabulary to decode()"
        )
    ids = [int(i) for i in vocabulary.encode(text, 4 * len(text) + 2)]
    return [i for i in ids if i not in (BOS, PAD, EOS)]
