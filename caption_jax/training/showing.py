"""What TensorBoard shows of a model at an evaluation: pictures with captions, and where the decoder looked."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from caption_jax.decoding import decode
from caption_jax.training.experiment import Experiment
from caption_jax.training.monitoring import Monitor
from input_pipeline.images import ImageError
from input_pipeline.records import Split

PyTree = Any


def show_samples(monitor: Monitor, experiment: Experiment, split: Split, weights: PyTree, step: int) -> None:
    """Draws `config.train.sample_images` images of the split with generated and reference captions and attention."""
    count = min(experiment.config.train.sample_images, len(split))
    if not count or jax.process_count() > 1:  # a drawing is not worth a program that all processes must join
        return
    from caption_jax.training.pictures import attention_overlay, caption_grid

    described = experiment.described
    images, references = [], []
    for record in split.records[:count]:
        try:
            images.append(described.preprocessing.load(record.source(), name=record.name))
        except ImageError:
            continue  # named by the evaluation of the same images
        references.append(record.captions[0])
    if not images:
        return
    decoded = _decode(experiment, weights, np.stack(images))
    captions = [described.vocabulary.decode(row) for row in decoded.tokens]
    pictures = {"samples": caption_grid(np.stack(images), captions, references)}
    for i in range(min(4, len(images))):
        words, maps = _word_maps(experiment, decoded.tokens[i], decoded.attention[i])
        if words:
            pictures[f"attention_{i}"] = attention_overlay(images[i], words, maps)
    monitor.pictures(step, pictures)


def _decode(experiment: Experiment, weights: PyTree, images: np.ndarray) -> Any:
    model, preprocessing = experiment.model(), experiment.described.preprocessing
    settings = ConfigDict({"method": "greedy", "max_length": experiment.config.decode.max_length})

    @jax.jit
    def run(variables: PyTree, pixels: jax.Array) -> Any:
        features = model.apply(variables, preprocessing.normalise(pixels), train=False, method="encode_images")
        return decode(model, variables, features, settings, return_attention=True)

    return jax.device_get(run(weights, images))


def _word_maps(experiment: Experiment, tokens: np.ndarray, attention: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Words of a caption and, for each, the attention over image slots while it was predicted (mean of its tokens)."""
    words, maps = experiment.described.vocabulary.words_with_spans(tokens), []
    for _, start, end in words:
        maps.append(attention[start:end].mean(axis=0))
    return [word for word, _, _ in words], np.array(maps)
