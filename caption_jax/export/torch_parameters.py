"""Converts our variables to the state dict of `torch_captioner.py`, with timm's names for the image encoder."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from caption_jax.models.backbones.efficientnet_variants import get_variant
from caption_jax.models.decoder import INIT_STDDEV, make_sinusoids
from caption_jax.pretrained.naming import TIMM
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import flatten_arrays

PyTree = Any

_BACKBONE = "image_encoder/backbone/"
_MODULES = {"image_encoder/grid/": "memory/grid/", "image_encoder/pooled/": "memory/vector/", "decoder/": "decoder/"}


def to_state_dict(variables: PyTree, description: RunDescription) -> dict[str, np.ndarray]:
    """Returns the state dict of the captioner, without those of the text encoder, joint embedding and context.

    Args:
        variables: `params` and `batch_stats` as NumPy arrays.
        description: description of a model whose image encoder is an EfficientNet.
    """
    spec = description.spec.model
    modules = TIMM.modules(get_variant(spec.encoder.variant))
    result = {}
    for name, array in flatten_arrays(variables).items():
        path = name.split("/", 1)[1]  # without the collection
        if path.startswith(_BACKBONE):
            path = path.removeprefix(_BACKBONE)
            result[f"encoder.{TIMM.key(modules, path)}"] = _arrange_convolution(path, array)
        elif path.startswith("image_encoder/pooled/") and spec.image_memory == "grid":
            continue  # only the joint embedding uses it
        elif renamed := _rename(path):
            result[renamed] = array.T if path.endswith("/kernel") else array
    if spec.decoder.positions == "sinusoidal":
        length, width = description.model_settings.max_length, spec.decoder.width
        result["decoder.position"] = 2**0.5 * INIT_STDDEV * make_sinusoids(length, width)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in result.items()}


def _rename(path: str) -> str:
    """Returns the name of a parameter outside the image encoder's backbone; "" if the captioner does not have it."""
    for prefix, new_prefix in _MODULES.items():
        if path.startswith(prefix):
            name = re.sub(r"/layer_(\d+)/", r"/layers/\1/", new_prefix + path.removeprefix(prefix))
            name = re.sub(r"/(kernel|scale)$|(?<=decoder/embedding)$", "/weight", name)
            return name.replace("/", ".")
    return ""


def _arrange_convolution(path: str, array: np.ndarray) -> np.ndarray:
    """Converts a kernel to [outputs, inputs, height, width]."""
    if not path.endswith("/kernel"):
        return array
    if path.endswith("depthwise/conv/kernel"):
        return array.transpose(2, 0, 1)[:, None]
    if path.startswith("stem/"):
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None]
