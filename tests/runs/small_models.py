"""Small run descriptions and variables for tests of reading and writing models."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from etils import epath
from small_run import get_config

from caption_jax.runs.artifact import Pointer, write_artifact, write_pointer
from caption_jax.runs.checkpoints import Checkpoints
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.weights import Weights
from caption_jax.runs.workdir import write_description
from caption_jax.specs import RunSpec
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Tokenizer, Vocabulary

CAPTIONS = ["a red box on the left"] * 2 + ["a green box on the right"] * 2


def small_description(captions: list[str] = CAPTIONS) -> RunDescription:
    tokenizer = Tokenizer.train(captions, 300)
    vocabulary = Vocabulary(tokenizer, range(tokenizer.size))
    settings = ModelSettings(vocabulary.size, 10, {"padding": "symmetric", "norm_epsilon": 1e-5})
    preprocessing = Preprocessing(size=32, mean=(1, 2, 3), std=(4, 5, 6))
    return RunDescription(RunSpec.from_config(get_config()), settings, preprocessing, vocabulary)


def make_variables(step: int) -> dict:
    """Returns variables whose values encode the step."""
    kernel, count = np.full((2, 3), step, np.float32), np.asarray(step, np.int32)
    return {"params": {"decoder": {"kernel": kernel, "count": count}}, "batch_stats": {"norm": {"mean": kernel[0] / 8}}}


def write_model(workdir: Path | epath.Path, step: int, *, best: bool = True) -> Pointer:
    """Writes the model of a step. If `best`, the pointer of the workdir is set to it."""
    pointer = write_artifact(epath.Path(workdir), small_description(), Weights(make_variables(step), step))
    if best:
        write_pointer(epath.Path(workdir), pointer)
    return pointer


def save_checkpoint(workdir: Path, step: int, *, best: bool = True) -> None:
    """Saves the run description and checkpoints in the format of an older release."""
    write_description(epath.Path(workdir), small_description())
    weights, checkpoints = jax.device_put(make_variables(step)), Checkpoints(workdir)
    if best:
        checkpoints.save_best(step, weights, {"CIDEr-D": 0.5})
    checkpoints.save(step, weights, {"rest": jax.numpy.zeros(2)}, {})
    checkpoints.close()


def assert_weights_of_step(weights: Weights, step: int) -> None:
    """Asserts that the weights are the variables of the step."""
    expected = make_variables(step)
    assert weights.step == step
    assert jax.tree.structure(weights.variables) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(weights.variables), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == expected_leaf.dtype
        np.testing.assert_array_equal(leaf, expected_leaf, strict=True)
