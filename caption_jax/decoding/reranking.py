"""Candidates ranked once more: by their own scores and by how well they fit the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from caption_jax.decoding.decoded import Decoded, gather_rows
from caption_jax.errors import ConfigError
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import BOS, PAD

PyTree = Any
# From the decoder's token ids, of any shape, to those of the text encoder.
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
    """Cosine, from -1 to 1, of each candidate's vector and its image's in the space that images and texts share.

    Args:
        model: a captioner with such a space.
        variables: its variables.
        features: of the images, from `encode_images`.
        tokens: candidates as decoding gives them, after <s>.
        text_ids: from the decoder's ids to those of the text encoder.
        bos_id: id of <s>, for both.
        pad_id: id of <pad>, for both.
    """
    captions = jnp.concatenate([jnp.full_like(tokens[..., :1], bos_id), tokens], axis=-1)
    ids = text_ids(captions).reshape(-1, captions.shape[-1])
    texts = model.apply(variables, ids, ids != pad_id, method="embed_texts").reshape(*tokens.shape[:2], -1)
    images = model.apply(variables, features, method="embed_images")
    # In full precision, as in training: accelerators would round the vectors to 8 bits.
    return jnp.einsum("bd,bcd->bc", images, texts, precision=jax.lax.Precision.HIGHEST)


def rerank(
    decoded: Decoded, similarity: Float[Array, "batch candidates"], weight: float | Float[Array, ""], count: int
) -> Decoded:
    """The `count` candidates of the highest score + `weight` x similarity, best first, with that sum as their score.

    Of equals the earlier comes first. Candidates that are none (score -inf) stay behind all others.

    Example:
        Scores -2.0 and -2.5 (nats), similarities 0.1 and 0.4: with `weight=1` the first is the best (-1.9 and -2.1),
        with `weight=2` the second (-1.8 and -1.7).
    """
    score = decoded.all_scores + weight * similarity
    order = jnp.argsort(-score, axis=1, stable=True)[:, :count]
    ranked = jax.tree.map(lambda array: gather_rows(array, order), decoded)
    return ranked.replace(all_scores=gather_rows(score, order))


def to_be_ranked(spec: DecodeSpec, model: Any, text_ids: TextIds | None) -> tuple[DecodeSpec, int]:
    """The settings that give all candidates there are to rank, and how many of them are wanted in the end.

    Args:
        spec: with a `rerank_weight` other than 0.
        model: the captioner.
        text_ids: see `similarities`; None where the model has no text encoder.

    Raises:
        ConfigError: the model cannot compare images with texts, or the settings give no candidates to choose from.
    """
    asked = f"config.decode.rerank_weight={spec.rerank_weight}"
    if not isinstance(model, ImageCaptioningModel):
        raise ConfigError(f"{asked} ranks the captions of one model; for an ensemble set it to 0")
    if model.shared_space is None or text_ids is None:
        raise ConfigError(
            f"{asked} compares captions with images, and this model has no space that they share: train one with "
            "config.objective.contrastive_weight above 0, as configs/flickr8k_search.py does, or set rerank_weight to 0"
        )
    spec.check_ranking()
    if spec.method == "sample":
        return spec, spec.draws
    return dataclasses.replace(spec, candidates=spec.beams), spec.candidates
