"""One entrance to all decoding methods, by config."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.models.captioning import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures


def decode(
    model: ImageCaptioningModel,
    variables: Any,
    features: ImageFeatures | Float[Array, "batch memory width"],
    decode_config: ConfigDict,
    *,
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
) -> Decoded:
    """Captions images as `config.decode` says. Can be traced by `jax.jit`.

    Args:
        model: the captioner.
        variables: its `params` (and whatever else it holds).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory.
        decode_config: the `decode` part of a config.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.

    Raises:
        ValueError: the config names no known method.
    """
    if decode_config.method != "greedy":
        raise ValueError(f'config.decode.method is {decode_config.method!r}; it must be "greedy"')
    return greedy(
        model,
        variables,
        features,
        max_length=decode_config.max_length,
        memory_mask=memory_mask,
        return_attention=return_attention,
    )
