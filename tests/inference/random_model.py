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


def write_random_model(workdir: Path) -> None:
    """Writes a workdir with a model of random weights, with the config of `small_run`."""
    tokenizer = Tokenizer.train(["a red box on the left", "a green box on the right"] * 2, 300)
    vocabulary = Vocabulary(tokenizer, range(tokenizer.size))
    settings = ModelSettings(vocabulary.size, 10, {"padding": "symmetric", "norm_epsilon": 1e-5})
    description = RunDescription(
        RunSpec.from_config(small_run.get_config()), settings, Preprocessing(size=32), vocabulary
    )
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 1, 9), np.int32)
    shapes = jax.eval_shape(description.model().init, jax.random.key(0), images, tokens)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    folder = epath.Path(workdir)
    write_pointer(folder, write_artifact(folder, description, Weights(variables, STEP)))
