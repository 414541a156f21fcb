"""Writes a small RoBERTa, and makes the config of a run that is initialised from it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import small_run
from ml_collections import ConfigDict
from roberta_folder import write_folder

from caption_jax.models.roberta import Roberta, RobertaSettings
from caption_jax.pretrained.roberta_weights import PretrainedText
from input_pipeline.tokenizer import Tokenizer

# Training texts of the tokenizer, which has tokens that do not occur in the captions.
TEXTS = ["a red box on the left", "a zebra crossing"] * 3


def write_roberta(folder: Path, form: str) -> PretrainedText:
    """Writes random weights with an output bias, and a tokenizer. See `write_folder` for `form`."""
    tokenizer = Tokenizer.train(TEXTS, 400)
    tokenizer.save(folder)
    settings = RobertaSettings(
        vocab_size=tokenizer.size,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=14,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    ids, rng = np.zeros((1, 1), np.int32), np.random.default_rng(0)
    shapes = jax.eval_shape(Roberta(settings).init, jax.random.key(0), ids, ids == 0)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    output_bias = rng.normal(size=settings.vocab_size).astype(np.float32)
    write_folder(folder, form, settings, params, output_bias)
    return PretrainedText(settings, params, str(folder), output_bias)


def make_roberta_config(folder: Path, images: Path) -> ConfigDict:
    """Returns the config of `small_run` on `images` with the RoBERTa in `folder` as text encoder."""
    config = small_run.get_config()
    config.data.root = str(images)
    config.data.tokenizer = str(folder)
    config.objective.contrastive_weight = 0.5
    config.model.text_encoder.weights = str(folder)
    return config
