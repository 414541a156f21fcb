"""Run descriptions derived from a config alone, with explicit assumptions about its data and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from caption_jax.backbones.protocol import stored_settings
from caption_jax.models.build import roberta_settings
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.workdir import read_description, read_specs
from caption_jax.specs import DatasetFacts, RunSpec, replace_values, resolve
from caption_jax.specs.resolve import use_stored_values
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK

_ASSUMED_STEPS = 10_000  # if the length of the run depends on its data; affects only the learning-rate schedule
_ROBERTA_VOCABULARY_SIZE = 50265
_ROBERTA_BASE = {
    "vocab_size": _ROBERTA_VOCABULARY_SIZE,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": PAD,
}


@dataclass(frozen=True)
class AssumedVocabulary:
    """Placeholder for a `Vocabulary` of a given size, for programs that are compiled but not run."""

    size: int

    def to_full(self, ids: Sequence[int]) -> Int[np.ndarray, " ids"]:
        """Returns full ids, assuming that the vocabulary consists of the first tokens of the tokenizer."""
        return np.asarray(ids, np.int32)

    def encode(self, text: str, max_length: int) -> Int[np.ndarray, " length"]:
        """Returns token ids, assuming one token per word."""
        words = [UNK + 1 + index for index, _ in enumerate(text.split())]
        ids = np.full(max_length, PAD, np.int32)
        ids[: len(words) + 2] = [BOS, *words, EOS][:max_length]
        return ids

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "texts length"]:
        """Returns the token ids of a batch of texts; see `encode`."""
        return np.stack([self.encode(text, max_length) for text in texts])


def describe_run(spec: RunSpec, workdir: epath.Path, vocabulary_size: int = 0) -> tuple[RunDescription, dict[str, Any]]:
    """Reads the description of a run that has been started, or creates one from assumptions.

    Args:
        spec: spec of the run, with a concrete `dtype`.
        workdir: workdir that may contain the description of the run.
        vocabulary_size: size of the vocabulary, or 0 for the stored or assumed size.

    Returns:
        The description, and the assumed values by name.

    Raises:
        ValueError: `vocabulary_size` is inconsistent with the config.
    """
    if not vocabulary_size and (workdir / "model.json").exists():
        stored = read_description(workdir)
        spec = _resolve(use_stored_values(spec, *read_specs(workdir)))
        return RunDescription(spec, stored.model_settings, stored.preprocessing, stored.vocabulary), {}
    size = vocabulary_size or _max_vocabulary_size(spec)
    source = "--vocabulary" if vocabulary_size else "all tokens of the tokenizer; the run will have fewer"
    assumed: dict[str, Any] = {"vocabulary": size, "vocabulary_from": source}
    if not spec.data.max_length:
        assumed["max_length"] = "the largest value that is fitted to captions"
    spec = _resolve(spec)
    text_encoder = None
    joint_embedding = spec.objective.contrastive_weight > 0
    if joint_embedding or spec.model.context.max_texts > 0:
        if spec.model.text_encoder.weights:
            text_encoder = _ROBERTA_BASE
            assumed["text_encoder"] = f"{spec.model.text_encoder.weights} has the dimensions of roberta-base"
        else:
            text_encoder = roberta_settings(spec.model.text_encoder, size, spec.data.max_length, PAD)
    backbone = stored_settings(spec.model.encoder.settings_class())
    settings = ModelSettings(size, spec.data.max_length, backbone, text_encoder, joint_embedding)
    preprocessing = Preprocessing(spec.data.image_size, spec.data.resize, spec.data.interpolation)
    return RunDescription(spec, settings, preprocessing, AssumedVocabulary(size)), assumed


def _resolve(spec: RunSpec) -> RunSpec:
    """Replaces values that the run fits to its data with assumptions."""
    spec = replace_values(spec, {"train.steps": spec.train.steps or _ASSUMED_STEPS})
    return resolve(spec, DatasetFacts(train_images=spec.data.batch_size))


def _max_vocabulary_size(spec: RunSpec) -> int:
    return spec.data.vocabulary_size if spec.data.tokenizer == "train" else _ROBERTA_VOCABULARY_SIZE
