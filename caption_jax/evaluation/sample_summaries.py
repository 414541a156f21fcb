"""Pictures for TensorBoard at each evaluation: images with captions, and the decoder's attention word by word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from caption_jax.decoding import Decoded
from caption_jax.evaluation.word_attention import attention_per_word, stack_context
from caption_jax.inference.captioning import caption_batch
from caption_jax.runs.experiment import Experiment
from caption_jax.telemetry.monitoring import Monitor
from input_pipeline.context import ContextCaptions
from input_pipeline.images import ImageError
from input_pipeline.records import Record, Split

PyTree = Any

_ATTENTION_IMAGES = 4  # of the samples, those that attention is drawn for


class Samples:
    """Draws the first `config.train.sample_images` images of a split with captions and attention, at each evaluation.

    The images are read and the decoder is compiled once. Where several processes train, nothing is drawn.

    Args:
        experiment: the run.
        split: the images.
        context: the captions that the model reads with each image; None for none.
    """

    def __init__(self, experiment: Experiment, split: Split, context: ContextCaptions | None = None):
        self._vocabulary = experiment.description.vocabulary
        several = jax.process_count() > 1  # drawings are not worth a program that all processes would have to join
        count = 0 if several else min(experiment.spec.train.sample_images, len(split))
        self._images, records = _load_readable(experiment, split.records[:count])
        self._references = [record.captions[0] if record.captions else "" for record in records]
        self._context = stack_context(context, records)
        self._decode = _decoder_with_attention(experiment)

    def show(self, monitor: Monitor, weights: PyTree, step: int) -> None:
        """Captions the images with `weights` and sends the pictures to the monitor."""
        if not self._references:
            return
        from caption_jax.evaluation.report.plots import (  # matplotlib: a second to import
            attention_overlay,
            caption_grid,
        )

        decoded = jax.device_get(self._decode(weights, self._images, self._context))
        captions = [self._vocabulary.decode(row) for row in decoded.tokens]
        pictures = {"samples": caption_grid(self._images, captions, self._references)}
        for i in range(min(_ATTENTION_IMAGES, len(captions))):
            words, attention = attention_per_word(self._vocabulary, decoded.tokens[i], decoded.attention[i])
            if words:
                pictures[f"attention_{i}"] = attention_overlay(self._images[i], words, attention)
        monitor.pictures(step, pictures)


def _load_readable(experiment: Experiment, records: Sequence[Record]) -> tuple[np.ndarray, list[Record]]:
    """Pixels [images, size, size, 3] of the records whose image can be read, and these records."""
    images, readable = [], []
    for record in records:
        try:
            images.append(experiment.description.preprocessing.load(record.source(), name=record.name))
        except (ImageError, OSError):
            continue  # the evaluation of the same images reports it
        readable.append(record)
    return np.array(images), readable


def _decoder_with_attention(experiment: Experiment) -> Callable[[PyTree, np.ndarray, np.ndarray | None], Decoded]:
    """A jitted greedy decoder of (variables, pixels, context) that also returns each token's attention over the image.

    The attention covers the image's slots only, not those of the context.
    """
    model, description = experiment.model(), experiment.description
    spec = dataclasses.replace(experiment.spec.decode, method="greedy", rerank_weight=0.0)

    @jax.jit
    def run(variables: PyTree, pixels: jax.Array, context: jax.Array | None) -> Decoded:
        batch = {"image": pixels, "context": context}
        features, decoded = caption_batch(model, variables, batch, description, spec, return_attention=True)
        return decoded.replace(all_attention=decoded.all_attention[..., : features.image_slots])

    return run
