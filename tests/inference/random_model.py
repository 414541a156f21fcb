"""A model folder with random weights, for tests that need a captioner but no meaningful captions."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import small_run
from etils import epath

from caption_jax.runs.artifact import write_artifact, write_pointer
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.weights import Weights
from caption_jax.specs import RunSpec
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Tokenizer, Vocabulary

STEP = 7
PREPROCESSING = Preprocessing(size=32)
CAPTIONS = ("a red box on the left", "a green box on the right")


def write_random_model(
    workdir: Path, *, seed: int = 0, preprocessing: Preprocessing = PREPROCESSING, captions: tuple = CAPTIONS
) -> None:
    """Writes a workdir with a model of random weights, with the config of `small_run`."""
    tokenizer = Tokenizer.train(captions * 2, 300)
    vocabulary = Vocabulary(tokenizer, range(tokenizer.size))
    settings = ModelSettings(vocabulary.size, 10, {"padding": "symmetric", "norm_epsilon": 1e-5})
    description = RunDescription(RunSpec.from_config(small_run.get_config()), settings, preprocessing, vocabulary)
    side = preprocessing.size
    images, tokens = np.zeros((1, side, side, 3), np.float32), np.zeros((1, 1, 9), np.int32)
    shapes = jax.eval_shape(description.model().init, jax.random.key(0), images, tokens)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    folder = epath.Path(workdir)
    write_pointer(folder, write_artifact(folder, description, Weights(variables, STEP)))
