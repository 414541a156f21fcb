"""Exports a model as a folder for PyTorch, with a single source file that needs none of our code."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from etils import epath
from safetensors.numpy import save

from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.errors import ConfigError
from caption_jax.export.captioner_source import read_captioner
from caption_jax.export.card_facts import RunFacts
from caption_jax.export.decode_checks import WITHOUT_EFFECT, check_decode_settings
from caption_jax.export.model_card import write_card
from caption_jax.export.torch_parameters import to_state_dict
from caption_jax.models.backbones.efficientnet_variants import get_variant
from caption_jax.runs.artifact import CARD, WEIGHTS
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import Model
from caption_jax.runs.workdir import write_json
from input_pipeline.files import write_atomically

_DECODE_SETTINGS = ("max_length", "min_length", "at_limit")
_USAGE = """\
    pip install torch safetensors numpy pillow
    python captioner.py photo.jpg

or, from Python, `Captioner(FOLDER).caption(["photo.jpg"])` of `captioner.py`. It decodes greedily, in float32."""


def write_torch_folder(folder: epath.Path, model: Model, facts: RunFacts, workdir: epath.Path) -> None:
    """Writes a folder that `captioner.py`, which it contains, reads.

    Raises:
        ConfigError: `captioner.py` does not implement the image encoder, the layers over the memory or a decoding
            setting of the model.
    """
    del workdir
    description = model.description
    _check_supported(description)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", _make_config(description, model.weights.step))
    write_atomically(folder / "preprocessing.json", description.preprocessing.to_json() + "\n")
    write_atomically(folder / "tokenizer.json", description.vocabulary.tokenizer.to_json() + "\n")
    write_atomically(folder / "captioner.py", read_captioner("torch_captioner"))
    write_atomically(folder / CARD, write_card(model, facts, _USAGE, "pytorch"))
    write_atomically(folder / WEIGHTS, save(to_state_dict(model.weights.variables, description)))


def _check_supported(description: RunDescription) -> None:
    encoder = description.spec.model.encoder
    if type(encoder) is not EfficientNetBackbone:
        raise ConfigError(
            f"--to=torch supports EfficientNet, but the image encoder of this run is {type(encoder).__name__}: use "
            "--to=folder"
        )
    for key in ("encoder.fine_stage", "memory_layers"):
        if value := functools.reduce(getattr, key.split("."), description.spec.model):
            raise ConfigError(
                f"--to=torch does not support config.model.{key}={value!r}, which this run was trained with: use "
                "--to=folder"
            )
    check_decode_settings(description.spec.decode, "torch", (*_DECODE_SETTINGS, *WITHOUT_EFFECT))


def _make_config(description: RunDescription, step: int) -> dict[str, Any]:
    spec, settings, vocabulary = description.spec.model, description.model_settings, description.vocabulary
    variant, backbone = get_variant(spec.encoder.variant), description.backbone_settings
    cells = (-(-description.preprocessing.size // variant.stride)) ** 2
    decode = {name: getattr(description.spec.decode, name) for name in _DECODE_SETTINGS}
    decode["max_length"] = min(decode["max_length"] or settings.max_length, settings.max_length)
    decoder_names = ("layers", "width", "heads", "feed_forward", "norm", "norm_epsilon", "activation")
    return {
        "format": "caption-jax torch 1",
        "step": step,
        "encoder": {
            "variant": spec.encoder.variant,
            "stem": variant.stem_channels,
            "head": variant.head_channels,
            "stages": [dataclasses.asdict(stage) for stage in variant.scaled_stages],
            "squeeze_excite": variant.squeeze_excite,
            "activation": variant.activation,
            "padding": backbone.padding,
            "norm_epsilon": backbone.norm_epsilon,
        },
        "memory": {"image_memory": spec.image_memory, "vector": spec.vector, "cells": cells},
        "decoder": {
            **{name: getattr(spec.decoder, name) for name in decoder_names},
            "vocabulary_size": settings.vocabulary_size,
            "max_length": settings.max_length,
        },
        "decode": decode,
        "full_ids": vocabulary.to_full(range(vocabulary.size)).tolist(),
        "special_ids": sorted(vocabulary.tokenizer.special_ids),
    }
