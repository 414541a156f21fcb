"""A model folder with random weights, for tests that need a captioner but no meaningful captions."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import small_run
from etils import epath

from caption_jax.models.build import roberta_settings
from caption_jax.runs.artifact import write_artifact, write_pointer
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.weights import Weights
from caption_jax.specs import RunSpec
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

STEP = 7
PREPROCESSING = Preprocessing(size=32)
CAPTIONS = ("a red box on the left", "a green box on the right")


def write_random_model(
    workdir: Path,
    *,
    seed: int = 0,
    preprocessing: Preprocessing = PREPROCESSING,
    captions: tuple = CAPTIONS,
    max_texts: int = 0,
) -> None:
    """Writes a workdir with a model of random weights, with the config of `small_run` and up to `max_texts` texts."""
    tokenizer = Tokenizer.train(captions * 2, 300)
    vocabulary = Vocabulary(tokenizer, range(tokenizer.size))
    config = small_run.get_config()
    if max_texts:
        config.data.context, config.model.context.max_texts = "an index", max_texts
        config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    spec = RunSpec.from_config(config)
    text_encoder = roberta_settings(spec.model.text_encoder, tokenizer.size, 10, PAD) if max_texts else None
    settings = ModelSettings(vocabulary.size, 10, {"padding": "symmetric", "norm_epsilon": 1e-5}, text_encoder, False)
    description = RunDescription(spec, settings, preprocessing, vocabulary)
    side = preprocessing.size
    images, tokens = np.zeros((1, side, side, 3), np.float32), np.zeros((1, 1, 9), np.int32)
    shapes = jax.eval_shape(description.model().init, jax.random.key(0), images, tokens)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    folder = epath.Path(workdir)
    write_pointer(folder, write_artifact(folder, description, Weights(variables, STEP)))
