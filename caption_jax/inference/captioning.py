"""From pixels to captions, the one way for all who caption: normalise, encode, add context, decode.

Pure functions, to be traced by `jax.jit`. Flax is imported when they are called: a start that takes up a program which
was traced before needs none of it.
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
    context_ids: Int[jax.Array, "batch slots length"] | None,
    description: RunDescription,
) -> ImageFeatures:
    """What the decoder attends to: the features of images and, where there is any, of their context.

    Args:
        model: of the run.
        variables: `params` and `batch_stats`.
        pixels: as `description.preprocessing.load` returns them.
        context_ids: texts in the text encoder's ids (`description.text_tokenizer`), filled up with <pad>; a slot
            without a text holds <pad> alone. None where the model takes no context, or is to do without.
        description: of the run.
    """
    images = description.preprocessing.normalise(pixels)
    features = model.apply(variables, images, train=False, method="encode_images")
    if context_ids is None:
        return features
    return model.apply(variables, features, context_ids, context_ids != PAD, method="add_context")


def encode_batch(
    model: ImageCaptioningModel, variables: PyTree, batch: Mapping[str, jax.Array | None], description: RunDescription
) -> ImageFeatures:
    """`encode_for_decoding` of a batch of the input pipeline.

    Args:
        model: of the run.
        variables: `params` and `batch_stats`.
        batch: `image` [batch, size, size, 3] uint8 and, where there is any, `context` [batch, slots, length] in the
            vocabulary's ids.
        description: of the run.
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
    """`decode` with the run's words.

    Args:
        model: of the run.
        variables: `params` and `batch_stats`.
        features: from `encode_for_decoding` or `encode_batch`.
        description: of the run.
        spec: how to decode.
        options: further arguments of `decode`, such as `image_ids`.
    """
    from caption_jax.decoding import decode

    words = {"vocabulary": description.vocabulary, "text_ids": description.text_ids}
    return decode(model, variables, features, spec, **words, **options)


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
        model: of the run.
        variables: `params` and `batch_stats`.
        batch: see `encode_batch`; its `index` [batch], if there is one, makes sampling independent of the batch.
        description: of the run.
        spec: how to decode.
        options: further arguments of `decode`, such as `return_attention`.
    """
    features = encode_batch(model, variables, batch, description)
    decoded = decode_features(model, variables, features, description, spec, image_ids=batch.get("index"), **options)
    return features, decoded
