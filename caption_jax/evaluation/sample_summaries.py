"""What TensorBoard shows of a model at an evaluation: pictures with captions, and where the decoder looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32

from caption_jax.decoding import Decoded, decode
from caption_jax.retrieval.context_captions import encode_images
from caption_jax.runs.experiment import Experiment
from caption_jax.telemetry.monitoring import Monitor
from input_pipeline.context import ContextCaptions
from input_pipeline.images import ImageError
from input_pipeline.records import Record, Split
from input_pipeline.tokenizer import Vocabulary

PyTree = Any


class Samples:
    """The first `config.train.sample_images` images of a split, drawn with captions and attention at each evaluation.

    The images are read, and the decoder that returns attention is compiled, once.
    """

    def __init__(self, experiment: Experiment, split: Split, context: ContextCaptions | None = None):
        self._vocabulary = experiment.description.vocabulary
        several = jax.process_count() > 1  # a drawing is not worth a program that all processes must join
        count = 0 if several else min(experiment.config.train.sample_images, len(split))
        self._images, records = _readable(experiment, split.records[:count])
        self._references = [record.captions[0] if record.captions else "" for record in records]
        self._context = context_rows(context, records)
        self._decode = _decoder_with_attention(experiment)

    def show(self, monitor: Monitor, weights: PyTree, step: int) -> None:
        """Draws the images with generated and reference captions, and where the decoder looked for some words."""
        if not self._references:
            return
        from caption_jax.evaluation.report.plots import (  # matplotlib: a second to import
            attention_overlay,
            caption_grid,
        )

        decoded = jax.device_get(self._decode(weights, self._images, self._context))
        captions = [self._vocabulary.decode(row) for row in decoded.tokens]
        pictures = {"samples": caption_grid(self._images, captions, self._references)}
        for i in range(min(4, len(captions))):
            words, maps = word_maps(self._vocabulary, decoded.tokens[i], decoded.attention[i])
            if words:
                pictures[f"attention_{i}"] = attention_overlay(self._images[i], words, maps)
        monitor.pictures(step, pictures)


def word_maps(
    vocabulary: Vocabulary, tokens: Int[np.ndarray, " length"], attention: Float[np.ndarray, "length slots"]
) -> tuple[list[str], Float[np.ndarray, "words slots"]]:
    """Words of a caption and, for each, the attention over image slots as it was predicted (mean of its tokens)."""
    spans = vocabulary.words_with_spans(tokens)
    return [word for word, _, _ in spans], np.array([attention[start:end].mean(axis=0) for _, start, end in spans])


def context_rows(
    context: ContextCaptions | None, records: Sequence[Record]
) -> Int32[np.ndarray, "images slots length"] | None:
    """The context of some images, as a batch holds it; None where there is none."""
    if context is None or not records:
        return None
    return np.stack([context.load(record.image_id) for record in records])


def _readable(experiment: Experiment, records: Sequence[Record]) -> tuple[np.ndarray, list[Record]]:
    """Pixels [images, size, size, 3] of the records whose image can be read, and these records."""
    images, kept = [], []
    for record in records:
        try:
            images.append(experiment.description.preprocessing.load(record.source(), name=record.name))
        except (ImageError, OSError):
            continue  # named by the evaluation of the same images
        kept.append(record)
    return np.array(images), kept


def _decoder_with_attention(experiment: Experiment) -> Callable[[PyTree, np.ndarray, np.ndarray | None], Decoded]:
    """Decodes pixels and their context, and tells where in the image each token looked."""
    model, description = experiment.model(), experiment.description
    settings = {**experiment.config.decode, "method": "greedy", "rerank_weight": 0.0}
    vocabulary = description.vocabulary

    @jax.jit
    def run(variables: PyTree, pixels: jax.Array, context: jax.Array | None) -> Decoded:
        images = description.preprocessing.normalise(pixels)
        features = encode_images(model, variables, images, context, description)
        decoded = decode(model, variables, features, settings, vocabulary=vocabulary, return_attention=True)
        return decoded.replace(all_attention=decoded.all_attention[..., : features.image_slots])

    return run
