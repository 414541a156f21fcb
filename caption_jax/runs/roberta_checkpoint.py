"""Compatibility checks between RoBERTa checkpoints and the data and decoder of a config."""

from __future__ import annotations

from typing import Any

from caption_jax.errors import ConfigError
from caption_jax.models.build import roberta_settings
from caption_jax.specs import RunSpec
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Vocabulary


def text_encoder_settings(spec: RunSpec, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the config of the text encoder, after checking it against the tokenizer and the caption length.

    Raises:
        ConfigError: the RoBERTa checkpoint uses a different tokenizer or has too few positions for the captions.
        FileNotFoundError: the RoBERTa checkpoint does not exist.
    """
    name, data = spec.model.text_encoder.weights, spec.data
    if not name:
        return roberta_settings(spec.model.text_encoder, vocabulary.size, data.max_length, PAD)
    from caption_jax.pretrained.roberta_weights import load_roberta_settings

    settings = load_roberta_settings(name)
    _check_tokenizer("config.model.text_encoder.weights", name, settings, spec, vocabulary)
    max_tokens = settings["max_position_embeddings"] - settings["pad_token_id"] - 1
    if data.max_length > max_tokens:
        raise ConfigError(
            f"config.data.max_length={data.max_length}, but config.model.text_encoder.weights={name} has positions for "
            f"{max_tokens} tokens"
        )
    return settings


def check_decoder_weights(spec: RunSpec, vocabulary: Vocabulary) -> None:
    """Checks the dimensions and tokenizer of the RoBERTa checkpoint `config.model.decoder.weights`.

    Raises:
        ConfigError: the checkpoint is incompatible with the decoder or the tokenizer.
    """
    from caption_jax.pretrained.roberta_decoder import check_shape
    from caption_jax.pretrained.roberta_weights import load_roberta_settings

    name = spec.model.decoder.weights
    settings = load_roberta_settings(name)
    check_shape(settings, spec.model.decoder, spec.data.max_length)
    _check_tokenizer("config.model.decoder.weights", name, settings, spec, vocabulary)


def _check_tokenizer(key: str, name: str, settings: dict[str, Any], spec: RunSpec, vocabulary: Vocabulary) -> None:
    """Raises ConfigError unless the captions use the tokenizer of the checkpoint."""
    size, pad, tokenizer = settings["vocab_size"], settings["pad_token_id"], spec.data.tokenizer
    if tokenizer == "train" or (size, pad) != (vocabulary.tokenizer.size, PAD):
        raise ConfigError(
            f"{key}={name} has a vocabulary of {size} tokens and pad id {pad}, but config.data.tokenizer={tokenizer} "
            f"has {vocabulary.tokenizer.size} tokens and pad id {PAD}: set config.data.tokenizer to the tokenizer of "
            "the checkpoint (its hub name, or a folder with vocab.json and merges.txt), or train from scratch with "
            f'{key}=""'
        )
