"""The steps of captioning: normalisation, encoding, context and decoding. Used by all code that captions images.

These are pure functions to be traced by `jax.jit`. Flax is imported when they are called, because it is not needed if
the program is loaded from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Int, UInt8

from caption_jax.runs.description import RunDescription
from caption_jax.specs import DecodeSpec
from input_pipeline.special_tokens import PAD

if TYPE_CHECKING:
    from caption_jax.decoding.decoded import Decoded
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.image_encoder import ImageFeatures

PyTree = Any


def encode_for_decoding(
    model: ImageCaptioningModel,
    variables: PyTree,
    pixels: UInt8[jax.Array, "batch size size 3"],
    context_ids: Int[jax.Array, "batch texts text_length"] | None,
    description: RunDescription,
) -> ImageFeatures:
    """Encodes images and their optional context into the features that the decoder attends to.

    Args:
        model: the model of the run.
        variables: `params` and `batch_stats`.
        pixels: unnormalised images, as returned by `description.preprocessing.load`.
        context_ids: context texts as text encoder ids (`description.text_tokenizer`), padded with <pad>; rows without a
            text contain only <pad>. None for models without context, or to ignore context.
        description: the run description.
    """
    images = description.preprocessing.normalise(pixels)
    features = model.apply(variables, images, train=False, method="encode_images")
    if context_ids is None:
        return features
    return model.apply(variables, features, context_ids, context_ids != PAD, method="add_context")


def encode_batch(
    model: ImageCaptioningModel, variables: PyTree, batch: Mapping[str, jax.Array | None], description: RunDescription
) -> ImageFeatures:
    """Applies `encode_for_decoding` to a batch of the input pipeline.

    Args:
        model: the model of the run.
        variables: `params` and `batch_stats`.
        batch: `image` [batch, size, size, 3] uint8 and optionally `context` [batch, texts, length] (vocabulary ids).
        description: the run description.
    """
    context = batch.get("context")
    context_ids = None if context is None else description.text_tokenizer.from_caption_ids(context)
    return encode_for_decoding(model, variables, batch["image"], context_ids, description)


def decode_features(
    model: ImageCaptioningModel,
    variables: PyTree,
    features: ImageFeatures,
    description: RunDescription,
    spec: DecodeSpec,
    **options: Any,
) -> Decoded:
    """Calls `decode` with the vocabulary of the run.

    Args:
        model: the model of the run.
        variables: `params` and `batch_stats`.
        features: output of `encode_for_decoding` or `encode_batch`.
        description: the run description.
        spec: decoding settings.
        options: additional arguments of `decode`, such as `image_ids`.
    """
    from caption_jax.decoding import decode

    options |= {"vocabulary": description.vocabulary, "text_ids": description.text_ids}
    with jax.named_scope("decoding"):
        return decode(model, variables, features, spec, **options)


def caption_batch(
    model: ImageCaptioningModel,
    variables: PyTree,
    batch: Mapping[str, jax.Array | None],
    description: RunDescription,
    spec: DecodeSpec,
    **options: Any,
) -> tuple[ImageFeatures, Decoded]:
    """Encodes and decodes a batch of the input pipeline.

    Args:
        model: the model of the run.
        variables: `params` and `batch_stats`.
        batch: see `encode_batch`; with an `index` [batch], sampled captions do not depend on the rest of the batch.
        description: the run description.
        spec: decoding settings.
        options: additional arguments of `decode`, such as `return_attention`.

    Returns:
        The encoded features and the decoded captions.
    """
    features = encode_batch(model, variables, batch, description)
    decoded = decode_features(model, variables, features, description, spec, image_ids=batch.get("index"), **options)
    return features, decoded
