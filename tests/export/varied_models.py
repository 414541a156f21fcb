"""Models of random weights whose captions depend on the image, with any settings of `config.model`."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import small_run
from etils import epath
from ml_collections import ConfigDict
from random_model import CAPTIONS

from caption_jax.runs.artifact import write_artifact, write_pointer
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.weights import Weights, flatten_arrays, unflatten_arrays
from caption_jax.specs import RunSpec
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Tokenizer, Vocabulary

STEP = 7


def write_varied_model(
    workdir: Path, changes: dict | None = None, *, size: int = 32, gain: float = 6, **backbone: object
) -> None:
    """Writes a workdir with a model of the config of `small_run`.

    Args:
        workdir: the workdir.
        changes: config keys that differ, such as {"model.image_memory": "both"}.
        size: size of the images.
        gain: gain of the kernels of cross-attention, with which the dependence on the image, and rounding, grow.
        backbone: settings of the image encoder, `padding` and `norm_epsilon`.
    """
    tokenizer = Tokenizer.train(CAPTIONS * 2, 300)
    vocabulary = Vocabulary(tokenizer, set(range(tokenizer.size)) - set(range(9, 99, 2)))  # compact and full ids differ
    settings = ModelSettings(vocabulary.size, 10, {"padding": "symmetric", "norm_epsilon": 1e-5} | backbone)
    config = ConfigDict(small_run.get_config())
    config.update_from_flattened_dict({"data.image_size": size, **(changes or {})})
    preprocessing = Preprocessing(size=size, mean=(120, 115, 100), std=(60, 58, 56))
    description = RunDescription(RunSpec.from_config(config), settings, preprocessing, vocabulary)
    images, tokens = np.zeros((1, size, size, 3), np.float32), np.zeros((1, 1, 9), np.int32)
    shapes = jax.eval_shape(description.model().init, jax.random.key(0), images, tokens)
    folder = epath.Path(workdir)
    write_pointer(folder, write_artifact(folder, description, Weights(_draw(dict(shapes), gain), STEP)))


def _draw(shapes: dict, cross_gain: float) -> dict:
    """Draws weights that preserve the variance of activations, and norm statistics that are not trivial."""
    rng, arrays = np.random.default_rng(0), {}
    for name, zeros in flatten_arrays(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)).items():
        noise = rng.normal(size=zeros.shape).astype(np.float32)
        if name.endswith("/kernel"):
            gain = cross_gain if "cross_attention" in name else 1.4
            arrays[name] = noise * gain / np.sqrt(np.prod(zeros.shape[:-1]), dtype=np.float32)
        elif name.endswith(("/scale", "/var")):
            arrays[name] = np.exp(0.3 * noise)
        else:
            arrays[name] = (0.5 if name.endswith("/embedding") else 0.1) * noise
    arrays["params/decoder/output_bias"][4:-20] -= 20  # words are more likely than bytes
    return unflatten_arrays(arrays)
