"""A small RoBERTa in a folder, as transformers saves one, and the config of a run that starts from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import small_run
from ml_collections import ConfigDict
from transformers import FlaxPreTrainedModel, RobertaConfig

from input_pipeline.tokenizer import Tokenizer

# Learned on more than the captions hold, so that the compact vocabulary has holes.
TEXTS = ["a red box on the left", "a zebra crossing"] * 3


def write_roberta(
    folder: Path, model_class: Callable[..., FlaxPreTrainedModel], *, safetensors: bool = False
) -> FlaxPreTrainedModel:
    """Writes random weights of `model_class` and a tokenizer into `folder`; returns the model."""
    tokenizer = Tokenizer.train(TEXTS, 400)
    tokenizer.save(folder)
    sizes = RobertaConfig(
        vocab_size=tokenizer.size,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=14,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = model_class(sizes, seed=3)
    random = np.random.default_rng(0)
    model.params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), model.params)
    model.save_pretrained(folder, safe_serialization=safetensors)
    return model


def roberta_config(folder: Path, images: Path) -> ConfigDict:
    """`small_run` on `images`, with a text encoder from the RoBERTa in `folder`."""
    config = small_run.get_config()
    config.data.root = str(images)
    config.data.tokenizer = str(folder)
    config.objective.contrastive_weight = 0.5
    config.model.text_encoder.weights = str(folder)
    return config
