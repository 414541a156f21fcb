"""Ensembles: trained models whose probabilities are averaged with those of a run (`config.decode.ensemble`).

Each model encodes the images with its own encoder and normalisation, and has its own cache. At each step, the decoding
method sees the mean of their probabilities of the next token. Everything else that a run computes, such as image-text
similarities, search vectors and attention maps, is computed by the model of the run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, UInt8

from caption_jax.errors import ConfigError
from caption_jax.inference.captioning import encode_for_decoding
from caption_jax.parameters.stored_dtypes import FLOAT32, restore
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import load_model
from caption_jax.runs.model_source import parse_source

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.image_encoder import ImageFeatures

PyTree = Any

# Settings that determine the pixels of an image, which all models of an ensemble share. Each model normalises them.
_PIXEL_SETTINGS = {"size": "image_size", "resize": "resize", "interpolation": "interpolation"}


@dataclass(frozen=True)
class Ensemble:
    """The other models of an ensemble; falsy if there are none.

    Attributes:
        descriptions: description of each model.
        variables: variables of each model, on the devices.
        steps: training step of each model, by the name in the config.
    """

    descriptions: tuple[RunDescription, ...] = ()
    variables: tuple[PyTree, ...] = ()
    steps: Mapping[str, int] | None = None

    def __bool__(self) -> bool:
        return bool(self.descriptions)


SINGLE_MODEL = Ensemble()


def load_ensemble(
    names: Sequence[str],
    description: RunDescription,
    owner: str,
    sharding: jax.sharding.Sharding | None = None,
    weights: str = FLOAT32,
) -> Ensemble:
    """Loads the models of `config.decode.ensemble`.

    Args:
        names: see `parse_source`.
        description: description of the run whose model they complement.
        owner: name of that run, for error messages.
        sharding: sharding of the arrays; the first local device by default.
        weights: dtype in which the weights are stored; see `read_model`.

    Raises:
        ConfigError: the models differ in their tokenizers or pixels, or one of them uses context.
        MissingFileError: a model does not exist.
        WorkdirError: a model is damaged.
    """
    if not names:
        return SINGLE_MODEL
    _check_context(description, owner)
    models = []
    for name in names:
        source = parse_source(name)
        model = load_model(source.folder, source.which, sharding, weights)
        _check_context(model.description, name)
        check_same_inputs(description, model.description, owner, name, "config.decode.ensemble")
        models.append(model)
    return Ensemble(
        tuple(model.description for model in models),
        tuple(model.weights.variables for model in models),
        {name: model.weights.step for name, model in zip(names, models, strict=True)},
    )


def check_same_inputs(first: RunDescription, second: RunDescription, name: str, other: str, key: str) -> None:
    """Checks that two models read the same token ids and the same pixels.

    Args:
        first: description of a model.
        second: description of another model.
        name: name of the first model.
        other: name of the second model.
        key: the key or subcommand that combines them, for error messages.

    Raises:
        ConfigError: they do not; the message names both models.
    """
    tokenizers = first.vocabulary.fingerprint(), second.vocabulary.fingerprint()
    if tokenizers[0] != tokenizers[1]:
        hashes = f"{name} has {tokenizers[0][:8]} with {first.vocabulary.size:,} tokens and {other} has "
        raise ConfigError(
            f"{key} combines models with the same tokenizer, but {hashes}{tokenizers[1][:8]} with "
            f"{second.vocabulary.size:,} tokens: use models trained on the same captions with the same config.data"
        )
    settings = first.preprocessing.settings(), second.preprocessing.settings()
    for setting, config_key in _PIXEL_SETTINGS.items():
        if settings[0][setting] != settings[1][setting]:
            raise ConfigError(
                f"{key} combines models that read the same pixels, but data.{config_key} is {settings[0][setting]!r} "
                f"in {name} and {settings[1][setting]!r} in {other}: use models trained with the same value"
            )


def join_ensemble(
    model: ImageCaptioningModel,
    variables: PyTree,
    features: ImageFeatures,
    pixels: UInt8[Array, "batch size size 3"],
    others: Sequence[RunDescription],
    other_variables: Sequence[PyTree],
) -> tuple[Any, Any, Any]:
    """Returns the models, variables and features of an ensemble, the first three arguments of `decode`.

    A pure function to be traced by `jax.jit`.

    Args:
        model: the model of the run.
        variables: its variables.
        features: its features of the images.
        pixels: the unnormalised images.
        others: descriptions of the other models; without any, the first three arguments are returned.
        other_variables: variables of the other models.
    """
    if not others:
        return model, variables, features
    models, all_variables, all_features = [model], [variables], [features]
    for description, member_variables in zip(others, other_variables, strict=True):
        member, member_variables = description.model(), restore(member_variables)
        models.append(member)
        all_variables.append(member_variables)
        all_features.append(encode_for_decoding(member, member_variables, pixels, None, description))
    return models, all_variables, all_features


def _check_context(description: RunDescription, name: str) -> None:
    if description.spec.model.context.max_texts:
        raise ConfigError(
            f"config.decode.ensemble does not support models with context, such as that of {name} "
            "(config.model.context.max_texts above 0): use models without context"
        )
