"""Reranking of candidates by their scores, their similarity to the image and their consensus."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from caption_jax.decoding.consensus import Consensus, expected_scores
from caption_jax.decoding.decoded import Decoded, gather_rows
from caption_jax.errors import ConfigError
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import BOS, PAD

PyTree = Any
# Maps token ids of the decoder to token ids of the text encoder.
TextIds = Callable[[Int[Array, "*shape"]], Int[Array, "*shape"]]


def similarities(
    model: ImageCaptioningModel,
    variables: PyTree,
    features: ImageFeatures,
    tokens: Int[Array, "batch candidates length"],
    text_ids: TextIds,
    *,
    bos_id: int = BOS,
    pad_id: int = PAD,
) -> Float[Array, "batch candidates"]:
    """Computes the cosine similarity of each candidate and its image in the joint embedding.

    Args:
        model: a captioner with a joint embedding.
        variables: variables of the model.
        features: image features from `encode_images`.
        tokens: token ids of the candidates after <s>, as returned by decoding.
        text_ids: maps token ids of the decoder to token ids of the text encoder.
        bos_id: id of <s> in both vocabularies.
        pad_id: id of <pad> in both vocabularies.
    """
    captions = jnp.concatenate([jnp.full_like(tokens[..., :1], bos_id), tokens], axis=-1)
    ids = text_ids(captions).reshape(-1, captions.shape[-1])
    texts = model.apply(variables, ids, ids != pad_id, method="embed_texts").reshape(*tokens.shape[:2], -1)
    images = model.apply(variables, features, method="embed_images")
    # In full precision, as in training. By default, accelerators would round the vectors to bfloat16 or TF32.
    return jnp.einsum("bd,bcd->bc", images, texts, precision=jax.lax.Precision.HIGHEST)


def consensus_scores(
    decoded: Decoded, spec: DecodeSpec, consensus: Consensus | None
) -> Float[Array, "batch candidates"]:
    """Computes the score that each candidate can expect by `spec.consensus_metric`.

    Beams are weighted by their probabilities. Samples have equal weights, because probable captions are drawn more
    often.

    Args:
        decoded: all candidates.
        spec: the `decode` section.
        consensus: see `expected_scores`.

    Raises:
        ConfigError: `consensus` is None.
    """
    if consensus is None:
        raise ConfigError("config.decode.consensus_weight is above 0: pass `consensus` to decode()")
    is_caption = ~jnp.isneginf(decoded.all_scores)
    if spec.method == "sample":
        probabilities = is_caption / jnp.maximum(is_caption.sum(1, keepdims=True), 1)
    else:
        probabilities = jnp.where(is_caption, jax.nn.softmax(decoded.all_log_probs, axis=1), 0.0)
    return expected_scores(decoded.all_tokens, probabilities, spec.consensus_metric, consensus)


def rerank(
    decoded: Decoded, similarity: Float[Array, "batch candidates"], weight: float | Float[Array, ""], count: int
) -> Decoded:
    """Returns the `count` candidates with the highest score + `weight` * similarity, which becomes their score.

    `similarity` may be any other measure. The sort is stable, and empty candidates (score -inf) are last.

    Example:
        With scores -2.0 and -2.5 (nats) and similarities 0.1 and 0.4, the first candidate is ranked first at `weight=1`
        (-1.9 against -2.1), and the second candidate at `weight=2` (-1.7 against -1.8).
    """
    score = decoded.all_scores + weight * similarity
    order = jnp.argsort(-score, axis=1, stable=True)[:, :count]
    ranked = jax.tree.map(lambda array: gather_rows(array, order), decoded)
    return ranked.replace(all_scores=gather_rows(score, order))


def make_reranking_settings(spec: DecodeSpec, model: Any, text_ids: TextIds | None) -> tuple[DecodeSpec, int]:
    """Returns the settings for decoding all candidates to be ranked, and the number of candidates to retain.

    Args:
        spec: the `decode` section, with a nonzero `rerank_weight` or `consensus_weight`.
        model: the captioner.
        text_ids: see `similarities`; None if the model has no text encoder.

    Raises:
        ConfigError: the model has no joint embedding, or the settings produce only one candidate per image.
    """
    if spec.rerank_weight and (model.joint_embedding is None or text_ids is None):
        raise ConfigError(
            f"config.decode.rerank_weight={spec.rerank_weight} compares captions with images, but this model has no "
            "joint embedding: train one with config.objective.contrastive_weight above 0, as in "
            "configs/flickr8k_search.py, or set rerank_weight to 0"
        )
    spec.check_ranking()
    if spec.method == "sample":
        return spec, spec.num_samples
    return dataclasses.replace(spec, candidates=spec.num_beams), spec.candidates
